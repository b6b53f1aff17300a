"""FedEx-LoRA: Singhal et al., "Exact aggregation for federated and efficient fine-tuning of
foundation models" (ACL 2025, arXiv 2410.09432): A and B are averaged apart, and what that misses,
sum_i p_i (B_i - mean(B)) (A_i - mean(A)), of rank up to (n - 1) r, is added to the matrix itself.

Departures: weighted means (published: unweighted). The sum of all residuals so far is sent down in
full (published: each as factors), as a client may have missed any number of rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from forefed.aggregate.aggregator import Metrics
from forefed.aggregate.factored import Factored, Pair
from forefed.core.lora import Factors, stacked
from forefed.core.types import ServerContext


class FedEx(Factored):
    """A and B averaged apart; what that misses goes into the matrix itself. Exact."""

    kind: Literal["fedex"] = "fedex"
    source: ClassVar[str] = "FedEx-LoRA, arXiv 2410.09432"
    folds: ClassVar[bool] = True
    restarts: ClassVar[bool] = False

    def product(
        self,
        own: Sequence[Pair],
        shares: Sequence[float],
        old: Pair,
        at: Factors,
        ctx: ServerContext,
    ) -> tuple[Pair, Tensor | None, Metrics]:
        # as they will stand, in their own precision, so that the residual makes up for rounding too
        a = (sum(p * x.double() for p, (x, _) in zip(shares, own, strict=True)) + 0 * old[0]).to(
            old[0].dtype
        )
        b = (sum(p * x.double() for p, (_, x) in zip(shares, own, strict=True)) + 0 * old[1]).to(
            old[1].dtype
        )
        b_OR, a_RI = stacked([*own, (a, b)], [*shares, -1.0])
        return (a, b), b_OR @ a_RI, {}
