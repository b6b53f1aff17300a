"""The geometric median: Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning"
(IEEE TSP 2022, arXiv 1912.13445), by Weiszfeld's iteration.

Departures: the floor under distances, which keeps a vector that lies on the iterate from having
all of the weight, is a share of the median distance. (Published and in other libraries it is a
constant: at the scale of adapters, where updates are shorter than it, the rule is the plain mean.)
It begins at the coordinate-wise median, not at the mean, which liars may have carried away; clients
count equally, whatever they say of their examples.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from forefed.aggregate.aggregator import PerUnit
from forefed.aggregate.vectors import TINY, coordinate_median, middle
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class GeometricMedian(PerUnit):
    """The point with the least sum of distances to all vectors."""

    kind: Literal["geometric_median"] = "geometric_median"
    iterations: Annotated[int, Field(ge=1)] = 100
    """At most so many; it ends once a step is shorter than ``floor`` median distances."""
    floor: Annotated[float, Field(gt=0, lt=1)] = 1e-9
    """Least distance that counts, in median distances."""

    source: ClassVar[str] = "Pillutla et al., arXiv 1912.13445"

    def combine(
        self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        z_D = coordinate_median(x_ND)
        for _ in range(self.iterations):
            far_N = (x_ND - z_D).norm(dim=1)
            floor = (self.floor * middle(far_N)).clamp(min=TINY)
            near_N = 1 / far_N.clamp(min=float(floor))
            next_D = (near_N / near_N.sum()) @ x_ND
            moved, z_D = (next_D - z_D).norm(), next_D
            if moved <= floor:
                break
        return z_D, state

    def least(self) -> int:
        return 3  # of two points every point between them is a median
