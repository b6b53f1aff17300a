"""Base models whose frozen matrices stay in a map (``models.pages``): written once, then read.

The map is made from the loaded model, before anything of a run is in it. Later runs build the model
from its configuration and read its norms, biases and buffers from the map; in place of every matrix
stands one number, spread over the matrix's shape, until the quantised layer takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forefed.core.places import user_cache
from forefed.models.blocks import Blocks
from forefed.models.pages import LOOKED_UP, PACKED, SCALE, Pages, write_map
from forefed.models.quantised import Scheme, matrices_of, named_once, pack, weight_of

VERSION = "2"
REST, CAUSAL = "rest.", "causal"
SAMPLE = 4096
"""Bytes of every tensor of a checkpoint that its digest is made of, beside names and shapes."""


def described(folder: Path, kind: str, scheme: Scheme, dtype: torch.dtype) -> dict[str, str]:
    """What a map says that it is of.

    Args:
        folder: of the checkpoint.
        kind: the class of transformers that reads it, which names its tensors.
    """
    number = str(dtype).removeprefix("torch.")
    digest = digest_of(folder)
    return {"version": VERSION, "digest": digest, "kind": kind, "scheme": scheme, "dtype": number}


def place_of(said: dict[str, str]) -> Path:
    """The file of such a map."""
    name = hashlib.sha256("/".join(said.values()).encode()).hexdigest()[:32]
    return user_cache() / "maps" / f"{name}.safetensors"


def digest_of(folder: Path) -> str:
    """SHA-256 of a checkpoint's names and shapes, and of the first bytes of each of its tensors:
    a model trained further has changed them, and no gigabytes are read."""
    sha = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            text = file.read(length)
            sha.update(head + text)
            for end in _begins(text):
                file.seek(8 + length + end)
                sha.update(file.read(SAMPLE))
    return sha.hexdigest()


def _begins(text: bytes) -> list[int]:
    import json

    index = json.loads(text)
    index.pop("__metadata__", None)
    return sorted(entry["data_offsets"][0] for entry in index.values())


def write(
    path: Path,
    model: Any,
    scheme: Scheme,
    said: dict[str, str],
    causal: bool,
    drawn: Collection[str] = (),
) -> None:
    """The map of a whole model without adapters.

    Args:
        causal: do its tokens see earlier ones alone?
        drawn: parameters that belong to a run and not to the checkpoint.
    """
    matrices = matrices_of(model, Blocks.find(model, ()).names)
    once = named_once(matrices)
    looked_up = {name for name in once.values() if isinstance(matrices[name], nn.Embedding)}
    rest = {
        REST + name: x.detach()
        for name, x in (*model.named_parameters(), *model.named_buffers())
        if id(x) not in once and name not in drawn
    }
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        name: (x.dtype, tuple(x.shape)) for name, x in rest.items()
    }
    packed: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in once.values():
        shape = weight_of(matrices[name]).shape
        codes, scale = pack(torch.zeros(1, shape[1]), scheme)
        shapes[name + SCALE] = (scale.dtype, (shape[0], *scale.shape[1:]))
        packed[name + PACKED] = (codes.dtype, (shape[0], *codes.shape[1:]))
    wide_first = sorted(shapes, key=lambda name: -shapes[name][0].itemsize)
    ordered = {name: shapes[name] for name in wide_first} | packed

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in ordered:
            if name in rest:
                yield name, rest[name]
                continue
            of, part = name.rsplit(".", 1)
            codes, scale = pack(weight_of(matrices[of]), scheme)
            yield name, scale if f".{part}" == SCALE else codes

    more = {CAUSAL: str(causal), LOOKED_UP: " ".join(looked_up)}
    write_map(path, ordered, tensors(), {**said, **more})


def filled(shape: Any, pages: Pages, dtype: torch.dtype) -> Any:
    """A model on the device "meta", in place, with all that the map holds beside matrices.

    What neither it nor the matrices have is zero, and drawn later.
    """
    matrices = {id(m.weight) for m in matrices_of(shape, Blocks.find(shape, ()).names).values()}
    old = {id(x): x for x in (*shape.parameters(), *shape.buffers())}
    new: dict[int, Tensor] = {}

    def value(name: str, x: Tensor) -> Tensor:
        if REST + name in pages.index:
            return pages.tensor(REST + name).clone()
        kind = dtype if x.is_floating_point() else x.dtype
        if id(x) in matrices:
            return torch.zeros((), dtype=kind).expand(x.shape)
        return torch.zeros(x.shape, dtype=kind)

    for prefix, module in shape.named_modules():
        for kept in (module._parameters, module._buffers):
            for name, x in kept.items():
                if x is None or x.device.type != "meta":
                    continue
                if id(x) not in new:
                    there = value(f"{prefix}.{name}".removeprefix("."), x)
                    is_parameter = isinstance(x, nn.Parameter)
                    new[id(x)] = nn.Parameter(there, False) if is_parameter else there
                kept[name] = new[id(x)]
        for name, x in vars(module).items():  # such as a rotary embedding's first frequencies
            if isinstance(x, Tensor) and id(x) in new and old[id(x)] is x:
                setattr(module, name, new[id(x)])
    vars(shape).pop("hf_device_map", None)
    return shape
