"""FedEx-LoRA: Singhal et al., "Exact aggregation for federated and efficient fine-tuning of
foundation models" (ACL 2025, arXiv 2410.09432): A and B are averaged apart, and what that misses,
sum_i p_i (B_i - mean(B)) (A_i - mean(A)), of rank up to (n - 1) r, is added to the matrix itself.

Departures: weighted means (published: unweighted). The sum of all residuals so far is sent down in
full (published: each as factors), as a client may have missed any number of rounds.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.aggregate.factored import Factored, Held, New
from forefed.core.lora import stacked
from forefed.core.types import ServerContext


class FedEx(Factored):
    """A and B averaged apart; what that misses goes into the matrix itself. Exact."""

    kind: Literal["fedex"] = "fedex"
    source: ClassVar[str] = "FedEx-LoRA, arXiv 2410.09432"
    folds: ClassVar[bool] = True
    restarts: ClassVar[bool] = False

    def product(self, held: Held, ctx: ServerContext) -> New:
        # as they will stand, in their own precision, so that the residual makes up for rounding too
        a, b = (x.to(old.dtype) for x, old in zip(held.mean(), held.old, strict=True))
        b_OR, a_RI = stacked([*held.own, (a, b)], [*held.shares, -1.0])
        return New((a, b), b_OR @ a_RI)
