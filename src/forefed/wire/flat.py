"""An update's tensors as one vector, in the order in which they lie in a message.

Nothing is parsed: the form that is expected is known, so its header is, too, and what has another
header is read (and refused) tensor by tensor by whoever asked.

Legend: D elements of all tensors together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forefed.core.types import Params
from forefed.wire.message import pack_tensors

_LENGTH = 8
"""Bytes that tell how long the header is (safetensors)."""


@dataclass(frozen=True)
class Form:
    """What float32 tensors of these names and shapes look like in a message.

    Attributes:
        header: the bytes before the numbers.
        shapes: by name, in the order of the numbers.
    """

    header: bytes
    shapes: Mapping[str, tuple[int, ...]]
    size: int

    def vector(self, body: memoryview) -> NDArray[np.float32] | None:
        """The numbers [D] of a message's body, in its own memory, which may be unaligned; None: it
        is of another form."""
        start = len(self.header)
        if len(body) != start + 4 * self.size or body[:start] != self.header:
            return None
        return np.frombuffer(body, np.float32, offset=start)

    def tensors(self, vector: Tensor) -> Params:
        """A vector [D] as tensors, in its own memory."""
        found: Params = {}
        at = 0
        for name, shape in self.shapes.items():
            stop = at + torch.Size(shape).numel()
            found[name] = vector[at:stop].view(shape)
            at = stop
        return found

    def joined(self, tensors: Params) -> NDArray[np.float32]:
        """The inverse of ``tensors``."""
        return np.concatenate([tensors[n].numpy().reshape(-1) for n in self.shapes])


def form_of(like: Params) -> Form | None:
    """The form of tensors like these; None: not all are float32, so no vector holds them."""
    if not like or any(x.dtype != torch.float32 for x in like.values()):
        return None
    return _form(tuple((n, tuple(x.shape)) for n, x in like.items()))


@lru_cache(maxsize=256)
def _form(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Form:
    like = {name: torch.zeros(shape) for name, shape in shapes}
    packed, size = pack_tensors(like), sum(x.numel() for x in like.values())
    header = packed[: len(packed) - 4 * size]
    places = json.loads(header[_LENGTH:])
    ordered = sorted(like, key=lambda name: places[name]["data_offsets"])
    return Form(header, {n: tuple(like[n].shape) for n in ordered}, size)
