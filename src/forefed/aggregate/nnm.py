"""Nearest-neighbour mixing (NNM): Allouah et al., "Fixing by mixing: a recipe for optimal Byzantine
ML under heterogeneity" (AISTATS 2023, arXiv 2302.01772), Algorithm 2: for clients whose data
differ.

Every vector is replaced by the mean of the n - f nearest to it, itself included; another rule makes
one of them. A liar among honest ones is averaged away, one far off has honest neighbours, too.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import SerializeAsAny
from torch import Tensor

from forefed.aggregate.aggregator import PerUnit, Tolerant
from forefed.aggregate.nna import PIVOTS, joined
from forefed.aggregate.trimmed_mean import TrimmedMean
from forefed.aggregate.vectors import distances
from forefed.core.settings import Slot
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class NearestMixing(Tolerant):
    """Every update averaged with the nearest others, then another rule: for unequal clients."""

    kind: Literal["nnm"] = "nnm"
    rule: Annotated[SerializeAsAny[PerUnit], Slot(PIVOTS, "what joins the mixed vectors?")] = (
        TrimmedMean()
    )
    """Its f, where it has one, is this one's."""

    source: ClassVar[str] = "Allouah et al., arXiv 2302.01772"
    remembers: ClassVar[bool] = True  # the rule may

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        nearest_NK = distances(x_ND).argsort(dim=1, stable=True)[:, : len(x_ND) - f]
        mixed_ND = torch.stack([x_ND[nearest].mean(dim=0) for nearest in nearest_NK])
        return joined(self.rule, mixed_ND, f, unit, state, ctx)
