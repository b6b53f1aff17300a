"""An update's tensors as one vector, in the order in which they lie in a message.

Nothing is parsed: the form that is expected is known, so its header is, too, and what has another
header is read (and refused) tensor by tensor by whoever asked.

Legend: D elements of all tensors together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forefed.core.frame import layout
from forefed.core.types import Params


@dataclass(frozen=True)
class Form:
    """What float32 tensors of these names and shapes look like in a message.

    Attributes:
        header: the bytes before the numbers.
        places: name, shape, first number and that after the last, in the order of the numbers.
    """

    header: bytes
    places: tuple[tuple[str, tuple[int, ...], int, int], ...]
    size: int

    def vector(self, body: memoryview) -> NDArray[np.float32] | None:
        """The numbers [D] of a message's body, in its own memory, which may be unaligned; None: it
        is of another form."""
        start = len(self.header)
        if len(body) != start + 4 * self.size or body[:start] != self.header:
            return None
        return np.frombuffer(body, np.float32, offset=start)

    def tensors(self, x_D: NDArray[Any]) -> Params:
        """A vector as tensors, in its own memory."""
        return {
            name: torch.from_numpy(x_D[start:stop].reshape(shape))
            for name, shape, start, stop in self.places
        }

    def joined(self, tensors: Params) -> NDArray[np.float32]:
        """The inverse of ``tensors``."""
        return np.concatenate([tensors[n].numpy().reshape(-1) for n, *_ in self.places])


def finite(x_D: NDArray[np.float32]) -> bool:
    """Is every number finite? (A finite square of its length says so, at much less cost.)"""
    whole_D = torch.from_numpy(x_D)  # numpy warns of squares that are too large
    return math.isfinite(whole_D @ whole_D) or bool(np.isfinite(x_D).all())


def form_of(like: Params) -> Form | None:
    """The form of tensors like these; None: not all are float32, so no vector holds them."""
    if not like or any(x.dtype != torch.float32 for x in like.values()):
        return None
    return _form(tuple((n, "<f4", x.shape) for n, x in like.items()))


@lru_cache(maxsize=256)
def _form(form: tuple[tuple[str, str, torch.Size], ...]) -> Form:
    header, names = layout(form)
    shapes = {n: shape for n, _, shape in form}
    ends = zip(names, accumulate(shapes[n].numel() for n in names), strict=True)
    places = [(n, tuple(shapes[n]), end - shapes[n].numel(), end) for n, end in ends]
    return Form(header, tuple(places), sum(x.numel() for x in shapes.values()))
