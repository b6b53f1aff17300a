"""Exact gradients by recomputation that keeps nothing it can compute again.

Source: MeSP (arXiv 2602.13069). As ``checkpointed``, but a block's second run keeps an adapted
matrix's input alone, computes h = x A^T again where it is needed, and takes the feed-forward part a
few tokens at a time (``models.structured``). The gradient is backprop's up to rounding.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.core.types import Losses, LossFn
from forefed.gradients.backprop import Checkpointed


class Structured(Checkpointed):
    """Exact gradient by recomputation; keeps block inputs and less than a block."""

    kind: Literal["structured"] = "structured"  # type: ignore[assignment]
    source: ClassVar[str] = "MeSP, arXiv 2602.13069"

    def loss_of(self, task: Losses) -> LossFn:
        return task.loss_structured or task.loss_recomputed
