"""Means over seeds with their intervals, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forefed.core.types import Json

_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


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
    """The 97.5 % quantile of Student's t law, to 4 digits.

    Source: tables up to 10 degrees of freedom; beyond, the Cornish-Fisher expansion around the
    normal quantile (Abramowitz and Stegun 26.7.5).
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959963985
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))
