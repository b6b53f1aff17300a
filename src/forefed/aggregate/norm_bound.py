"""The mean of bounded contributions: Sun et al., "Can you really backdoor federated learning?"
(arXiv 1911.07963), section 5.2, norm thresholding.

Departure: the bound is a multiple of the round's median length (published: a constant), over the
whole of a client's contribution, so that it needs no tuning as lengths shrink; nobody counts for
more examples than three times the median, as their number is a claim. Contributions that are not
finite are dropped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.aggregate.aggregator import Aggregator, Metrics
from forefed.aggregate.mean import Mean
from forefed.core import trees
from forefed.core.states import State
from forefed.core.types import Contribution, Params, ServerContext


class NormBound(Aggregator):
    """Mean of contributions that are cut to a multiple of the median length."""

    kind: Literal["norm_bound"] = "norm_bound"
    cap: Annotated[float, Field(gt=0)] = 1.0
    """Largest length, in medians of the round's lengths."""

    source: ClassVar[str] = "Sun et al., arXiv 1911.07963"

    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        measured = [(c, trees.norm(c.delta)) for c in cs]
        finite = [(c, length) for c, length in measured if math.isfinite(length)]
        if not finite:
            return {}, state, {"not_finite": float(len(cs))}
        bound = self.cap * median(length for _, length in finite)
        most = 3 * median(c.weight for c, _ in finite)
        cut = [
            replace(c if length <= bound else c.scaled(bound / length), weight=min(c.weight, most))
            for c, length in finite
        ]
        total, _, _ = Mean()(cut, {}, ctx)
        metrics = {"cut": float(sum(length > bound for _, length in finite))}
        if len(finite) < len(cs):
            metrics["not_finite"] = float(len(cs) - len(finite))
        return total, state, metrics
