"""Outlying slopes clamped, at the client, before a codec rounds them.

Source: ours, after the guard of SPRY's authors' later code. Not a modifier: these act on the
gradient that slopes stand for, which the server makes of what has travelled; and the elements of an
exact gradient (``basis``) are left alone, as they differ in size for good reason.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from forefed.core.types import Estimate

WARM_UP = 8
"""Slopes seen before the first one is clamped."""


class RunningClamp:
    """Clamps slopes to a multiple of the running median of |slope| (local to one round).

    ``factor``: the multiple (``Directions.slope_bound``); 0: nothing is clamped.
    """

    def __init__(self, factor: float):
        self.factor = factor
        self.seen: list[float] = []
        self.count = 0

    def __call__(self, estimate: Estimate) -> Estimate:
        if not self.factor or estimate.slopes_K is None:
            return estimate
        clamped = []
        for slope in estimate.slopes_K.tolist():
            size = abs(slope)
            if math.isfinite(size):
                if len(self.seen) >= WARM_UP:
                    bound = self.factor * sorted(self.seen)[len(self.seen) // 2]
                    if size > bound > 0:
                        slope = bound if slope > 0 else -bound
                        self.count += 1
                self.seen.append(size)
            clamped.append(slope)
        slopes_K = torch.tensor(clamped, dtype=torch.float64)
        return replace(estimate, slopes_K=slopes_K)
