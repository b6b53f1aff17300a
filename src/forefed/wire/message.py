"""Tensors in messages; the frame around them is core/frame.py's."""

from __future__ import annotations

import torch
from torch import Tensor

from forefed.core.errors import ProtocolError
from forefed.core.frame import (
    ALLOWED_DTYPES,
    DEFAULT_LIMITS,
    FORMER,
    HEAD_BYTES,
    KINDS,
    MAGIC,
    MESSAGES,
    OURS,
    VERSION,
    Limits,
    frame_bytes,
    frames,
    kind_of,
    pack,
    pack_arrays,
    short,
    unpack,
    unpack_arrays,
)
from forefed.core.types import Params

__all__ = [
    "ALLOWED_DTYPES",
    "DEFAULT_LIMITS",
    "FORMER",
    "HEAD_BYTES",
    "KINDS",
    "MAGIC",
    "MESSAGES",
    "OURS",
    "VERSION",
    "Limits",
    "check_shapes",
    "frame_bytes",
    "frames",
    "kind_of",
    "pack",
    "pack_tensors",
    "short",
    "unpack",
    "unpack_tensors",
]


def pack_tensors(tensors: Params) -> bytes:
    """Tensors as safetensors bytes."""
    return pack_arrays({n: x.numpy(force=True) for n, x in tensors.items()})


def unpack_tensors(data: bytes | memoryview) -> Params:
    """The inverse of ``pack_tensors``.

    Raises:
        ProtocolError: not safetensors, or a dtype that no message of ours uses.
    """
    return {
        name: torch.from_numpy(x if x.flags.writeable else x.copy())
        for name, x in unpack_arrays(data).items()
    }


def check_shapes(tensors: Params, like: dict[str, Tensor] | Params, what: str) -> None:
    """Exactly the tensors of ``like``, by name, shape and number format.

    Raises:
        ProtocolError: a missing or extra name, another shape or format.
    """
    if tensors.keys() != like.keys():
        extra, missing = sorted(tensors.keys() - like.keys()), sorted(like.keys() - tensors.keys())
        raise ProtocolError(
            f"{what}: unexpected tensors {extra[:3]}, missing tensors {missing[:3]}"
        )
    for name, x in tensors.items():
        if x.shape != like[name].shape:
            raise ProtocolError(
                f"{what}: {name} has shape {tuple(x.shape)} instead of {tuple(like[name].shape)}"
            )
        if x.dtype != like[name].dtype:  # a sum would take the wider format, and keep it
            raise ProtocolError(f"{what}: {name} is {x.dtype} instead of {like[name].dtype}")
