"""Nearest-neighbour averaging (NNA): Farhadkhani et al., "Robust collaborative learning with linear
gradient overhead" (ICML 2023, arXiv 2209.10931), Algorithm 1, as a server's rule.

Published: a node averages the n - f vectors nearest to its own, which it trusts: ``pivot = "own"``
under a topology without a server (MoNNA, with the modifier ``momentum``). Departure: a server has
no vector of its own; another rule's result is the pivot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import SerializeAsAny
from torch import Tensor

from forefed.aggregate.aggregator import PerUnit, Tolerant
from forefed.aggregate.bulyan import Bulyan
from forefed.aggregate.centred_clipping import CentredClipping
from forefed.aggregate.geometric_median import GeometricMedian
from forefed.aggregate.krum import Krum
from forefed.aggregate.median import Median
from forefed.aggregate.multi_krum import MultiKrum
from forefed.aggregate.trimmed_mean import TrimmedMean
from forefed.core.settings import Registry, Slot
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class Own(PerUnit):
    """The node's own model, from which its neighbours' are counted."""

    kind: Literal["own"] = "own"

    def combine(
        self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        return x_ND.new_zeros(x_ND.shape[1]), state


PIVOTS: Registry[PerUnit] = Registry(
    "aggregator.pivot",
    [Median, TrimmedMean, GeometricMedian, CentredClipping, Krum, MultiKrum, Bulyan, Own],
)


class NearestNeighbours(Tolerant):
    """Mean of the n - f vectors nearest to what another rule says."""

    kind: Literal["nna"] = "nna"
    pivot: Annotated[SerializeAsAny[PerUnit], Slot(PIVOTS, "around which point?")] = Median()
    """Its f, where it has one, is this one's."""

    source: ClassVar[str] = "Farhadkhani et al., arXiv 2209.10931"
    remembers: ClassVar[bool] = True  # a pivot may

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if self.pivot.kind == "own" and config.topology.central:
            yield (
                "aggregator.pivot = 'own': a server has no model of its own that it trusts; choose "
                "another pivot ('median'), or topology.kind = 'gossip'"
            )

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        pivot_D, kept = joined(self.pivot, x_ND, f, unit, state, ctx)
        nearest = (x_ND - pivot_D).norm(dim=1).argsort(stable=True)[: len(x_ND) - f]
        return x_ND[nearest].mean(dim=0), kept


def joined(
    rule: PerUnit, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
) -> tuple[Tensor, State]:
    """Another rule over these vectors, f of them hostile; the median, where they are too few."""
    if isinstance(rule, Tolerant):
        rule = rule.model_copy(update={"f": f})
    ones_N = torch.ones(len(x_ND), dtype=torch.float64)
    done = rule.attempt(x_ND, ones_N, 0, unit, state, ctx)
    return done or Median().combine(x_ND, ones_N, unit, state, ctx)
