"""Means over seeds with their intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forefed.core.types import Json


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds; ``half`` is half the width of its 95 % interval (None: one seed)."""

    mean: float
    half: float | None
    n: int

    def to_json(self) -> Json:
        return {"mean": self.mean, "half": self.half, "n": self.n}


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and Student's 95 % interval, mean ± t * s / sqrt(n); None without values."""
    n = len(values)
    if not n:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, 1)
    variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
    return Interval(mean, student(n - 1) * math.sqrt(variance / n), n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The interval of ours - theirs over the seeds that both have.

    What a seed does to both alike (its clients, its cohorts) cancels.
    """
    return interval([value - theirs[seed] for seed, value in ours.items() if seed in theirs])


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t law."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
