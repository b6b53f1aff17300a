"""Centred clipping: Karimireddy, He, Jaggi, "Learning from history for Byzantine robust
optimization" (ICML 2021, arXiv 2012.10333), Algorithm 1; with client momentum, which the theory
asks for, the modifier ``momentum``.

    v <- v + mean of (u_i - v) min(1, tau / |u_i - v|)      ``iterations`` times, from the last v

Departures: tau is the median distance to v, anew in each iteration (published: a constant to be
tuned); where there is no last aggregate (the first round, slopes along directions of this round
only) v begins at the coordinate-wise median. Clients count equally.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from forefed.aggregate.aggregator import PerUnit
from forefed.aggregate.vectors import clipped, coordinate_median, middle
from forefed.core import trees
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class CentredClipping(PerUnit):
    """Mean of what is left of updates that are cut around the last aggregate."""

    kind: Literal["centred_clipping"] = "centred_clipping"
    iterations: Annotated[int, Field(ge=1)] = 3
    tau: Annotated[float, Field(gt=0)] | None = None
    """Radius in the unit of an update; None: the median distance to the centre."""

    source: ClassVar[str] = "Karimireddy et al., arXiv 2012.10333"
    remembers: ClassVar[bool] = True

    def combine(
        self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        v_D = coordinate_median(x_ND)
        if all(name in ctx.previous for name in unit.params):
            v_D = trees.flatten(trees.pick(ctx.previous, unit.params)).to(v_D)
        for _ in range(self.iterations):
            apart_ND = x_ND - v_D
            tau = middle(apart_ND.norm(dim=1)) if self.tau is None else self.tau
            v_D = v_D + clipped(apart_ND, tau).mean(dim=0)
        return v_D, state

    def least(self) -> int:
        return 3  # of two, either is as near to the median distance as the other
