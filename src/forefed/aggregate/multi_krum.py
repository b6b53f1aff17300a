"""Multi-Krum: Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient
descent" (NeurIPS 2017), section 5: the mean of the m vectors of the best Krum scores.

The scores are made once. (Some public code removes vectors one by one and scores anew, down to
2 f + 2; that is another rule.)
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from forefed.aggregate.aggregator import Tolerant
from forefed.aggregate.krum import scores
from forefed.aggregate.vectors import distances
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class MultiKrum(Tolerant):
    """Mean of the vectors with the nearest neighbours."""

    kind: Literal["multi_krum"] = "multi_krum"
    m: Annotated[int, Field(ge=1)] | None = None
    """Vectors that are averaged, n - f - 2 at most; None: as many."""

    source: ClassVar[str] = "Blanchard et al., NeurIPS 2017"
    beside: ClassVar[int] = 3

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        most = len(x_ND) - f - 2
        best = scores(distances(x_ND).square(), f).argsort(stable=True)
        return x_ND[best[: min(self.m or most, most)]].mean(dim=0), state
