"""Divide and conquer (DnC): Shejwalkar, Houmansadr, "Manipulating the Byzantine" (NDSS 2021),
Algorithm 2: hostile vectors stand out along the direction in which all of them differ most.

    b coordinates by chance; centred; v the top right singular vector
    score of a vector: the square of its part along v; the c f largest scores go

Result: the mean over what *every* iteration kept. (Some public code takes what any iteration kept.)
Departures: the coordinates are drawn from the round's key; where the iterations together have kept
nobody, the vectors that most of them kept count.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.aggregate.aggregator import Tolerant
from forefed.aggregate.vectors import clipped, middle
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class DivideAndConquer(Tolerant):
    """Mean without the vectors that stand out along the direction of largest variance."""

    kind: Literal["dnc"] = "dnc"
    iterations: Annotated[int, Field(ge=1)] = 1
    factor: Annotated[float, Field(gt=0)] = 1.0
    """c: so many times f vectors go in an iteration."""
    coordinates: Annotated[int, Field(ge=1)] = 10_000
    """b: drawn in each iteration (all, where there are fewer)."""

    cut: Annotated[float, Field(gt=0)] | None = None
    """Vectors are first cut to so many median lengths, so that no few long ones decide what the
    direction is; None: not (published)."""

    source: ClassVar[str] = "Shejwalkar and Houmansadr, NDSS 2021"

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        n, d = x_ND.shape
        if self.cut is not None:
            x_ND = clipped(x_ND, self.cut * middle(x_ND.norm(dim=1)))
        keep = max(1, n - math.floor(self.factor * f + 1e-9))
        votes_N = torch.zeros(n, dtype=torch.int64)
        for i in range(self.iterations):
            some = x_ND
            if self.coordinates < d:
                key = ctx.key.fold("dnc", unit.name, i)
                some = x_ND[:, key.choice(d, self.coordinates)]
            centred = some - some.mean(dim=0)
            # the top left singular vector of the centred matrix, times its singular value, is what
            # the vectors have along the right one
            along_N = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1].square()
            votes_N[along_N.argsort(stable=True)[:keep]] += 1
        return x_ND[votes_N == votes_N.max()].mean(dim=0), state
