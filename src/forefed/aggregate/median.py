"""The coordinate-wise median: Yin et al., "Byzantine-robust distributed learning: towards optimal
statistical rates" (ICML 2018, arXiv 1803.01498), Algorithm 1, option I.

Departure: of an even number of clients the mean of the two middle values (published: any of them).
Clients count equally, whatever they say of their examples: weights are a claim.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from forefed.aggregate.aggregator import PerUnit
from forefed.aggregate.vectors import coordinate_median
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class Median(PerUnit):
    """Coordinate-wise median: fewer than half of the clients cannot move it far."""

    kind: Literal["median"] = "median"
    coordinatewise: ClassVar[bool] = True
    source: ClassVar[str] = "Yin et al., arXiv 1803.01498"

    def combine(
        self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        return coordinate_median(x_ND), state

    def least(self) -> int:
        return 3  # the median of two is their mean
