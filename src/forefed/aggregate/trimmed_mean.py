"""The coordinate-wise trimmed mean: Yin et al., "Byzantine-robust distributed learning: towards
optimal statistical rates" (ICML 2018, arXiv 1803.01498), Algorithm 1, option II.

Departure: with fewer than 2 f + 1 clients of a unit nothing would be left, and the mean of vectors
cut to their median length stands in (counted in the record as ``few_holders``). Clients count
equally, whatever they say of their examples: weights are a claim.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from forefed.aggregate.aggregator import Tolerant
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class TrimmedMean(Tolerant):
    """Coordinate-wise mean without the f largest and the f smallest values."""

    kind: Literal["trimmed_mean"] = "trimmed_mean"
    coordinatewise: ClassVar[bool] = True
    source: ClassVar[str] = "Yin et al., arXiv 1803.01498"

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        return x_ND.sort(dim=0).values[f : len(x_ND) - f].mean(dim=0), state
