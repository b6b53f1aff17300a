"""Divide and conquer (DnC): Shejwalkar, Houmansadr, "Manipulating the Byzantine" (NDSS 2021),
Algorithm 2: hostile vectors stand out along the direction in which all of them differ most.

    b coordinates by chance; centred; v the top right singular vector
    score of a vector: the square of its part along v; the c f largest scores go

Result: the mean over what *every* iteration kept. (Some public code takes what any iteration kept.)
Departures: the coordinates are drawn from the round's key; where the iterations together have kept
nobody, the vectors that most of them kept count.

With ``past`` (ours) a client is judged by the sum of all its updates so far, each cut to the median
length of its round, and the mean is over the present ones. Lies of a few rounds look like rare rows
(a client whose classes the others lack differs from them as a liar does), but only liars go on
pulling away from the model that the others agree on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.aggregate.aggregator import Metrics, Tolerant, units_of, vectors_of
from forefed.aggregate.vectors import clipped, middle
from forefed.core.states import State
from forefed.core.types import Contribution, Params, ServerContext, Unit


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

    past: bool = False
    """Judge clients by the sum of their updates so far: for clients that come again. One vector is
    kept for each client and unit."""

    source: ClassVar[str] = "Shejwalkar and Houmansadr, NDSS 2021"

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        cut = self.cut or (1.0 if self.past else None)
        if cut is not None:
            x_ND = clipped(x_ND, cut * middle(x_ND.norm(dim=1)))
        judged_ND = x_ND
        if self.past:
            sums_ND = torch.stack([*state.values()]).double()
            judged_ND, state = clipped(sums_ND, middle(sums_ND.norm(dim=1))), {}
        return x_ND[self.kept(judged_ND, f, unit, ctx)].mean(dim=0), state

    def kept(self, x_ND: Tensor, f: int, unit: Unit, ctx: ServerContext) -> Tensor:
        """Which of these vectors do not stand out, [N] bool."""
        n, d = x_ND.shape
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
        return votes_N == votes_N.max()

    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        if not self.past:
            return super().__call__(cs, state, ctx)
        by_sums: State = {}
        for unit in units_of(cs, ctx.units):
            held, x_ND = vectors_of(cs, unit)
            if held:
                cut_ND = clipped(x_ND, (self.cut or 1.0) * middle(x_ND.norm(dim=1)))
                for c, x_D in zip(held, cut_ND, strict=True):
                    place = f"{unit.name}/past/{c.client}"
                    by_sums[place] = x_D.float() + state.get(place, torch.zeros(()))
        # handed on beside the vectors, which are those of the same clients in the same order
        total, _, metrics = super().__call__(cs, by_sums, ctx)
        return total, {**state, **by_sums}, metrics

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if self.past and config.codec.sends_slopes and config.directions.shared:
            yield (
                "aggregator.past adds up a client's updates over rounds, and slopes are along "
                "other directions in each; use codec.kind = 'dense', or leave it out"
            )
