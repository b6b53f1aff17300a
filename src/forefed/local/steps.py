"""What is kept of a client's steps while its round goes on, and given up with it."""

from __future__ import annotations

import math
from collections import Counter

import torch

from forefed.core import trees
from forefed.core.types import Estimate, Params
from forefed.local.groups import Slopes


class StepLog:
    """What happened in the steps of one client's round (local to one call)."""

    def __init__(self) -> None:
        self.slopes: list[Slopes] = []
        self.losses: list[float] = []
        self.forwards = 0.0
        self.seen = 0
        self.skipped = 0
        self.peak_bytes: int | None = None
        self.fallbacks: Counter[str] = Counter()

    def add(
        self, estimate: Estimate, slopes: Slopes, size: int, complete: bool, grad: Params
    ) -> None:
        self.slopes.append(slopes)
        self.losses.append(estimate.loss)
        self.forwards += estimate.forwards
        self.fallbacks.update(estimate.fallbacks)
        self.seen += size
        self.skipped += not (complete and trees.all_finite(grad))

    def metrics(self) -> dict[str, float]:
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        numbers = {
            "loss": sum(finite) / len(finite) if finite else math.nan,
            "steps": float(len(self.losses)),
            "skipped": float(self.skipped),
            "forwards": self.forwards,
            **{f"fallback/{name}": float(count) for name, count in self.fallbacks.items()},
        }
        if self.peak_bytes is not None:
            numbers["peak_bytes"] = float(self.peak_bytes)
        return numbers

    def stacked(self, groups: list[str]) -> Slopes:
        """Slopes [steps, K] by group; [0, 0] for a client without a step."""
        if not self.slopes:
            return {name: torch.zeros(0, 0) for name in groups}
        return {name: torch.stack([s[name] for s in self.slopes]) for name in groups}
