"""Quality with its interval over seeds, what it cost, and how far from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import facts, words
from forefed.report.comparison.cells import Comparison, Place
from forefed.report.read import Run


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds; ``half`` is half the width of its 95 % interval (None: one seed)."""

    mean: float
    half: float | None = None
    n: int = 1


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and Student's 95 % interval, mean ± t * s / sqrt(n); None without values."""
    if len(values) < 2:
        return Interval(values[0]) if values else None
    from scipy.stats import sem, t

    n = len(values)
    return Interval(fmean(values), float(t.ppf(0.975, n - 1) * sem(values)), n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The interval of ours - theirs over the seeds that both have.

    What a seed does to both alike (its clients, its cohorts) cancels.
    """
    return interval([value - theirs[seed] for seed, value in ours.items() if seed in theirs])


COSTS = tuple(cost for cost in facts.COSTS if cost.key)
"""By which methods are compared."""


@dataclass(frozen=True)
class Result:
    """One method at one place, over its seeds. ``difference``: to the reference, paired by seed."""

    place: Place
    method: str
    qualities: dict[int, float]
    quality: Interval | None
    difference: Interval | None
    costs: dict[str, float]
    rounds: int
    failed: int
    waiting: int
    """Seeds that have not run, or not to their end."""

    def to_json(self) -> Json:
        return {
            "dataset": self.place.dataset,
            "condition": dict(self.place.condition),
            "method": self.method,
            "quality": self.quality and asdict(self.quality),
            "by_seed": {str(seed): value for seed, value in self.qualities.items()},
            "difference": self.difference and asdict(self.difference),
            "costs": self.costs,
            "rounds": self.rounds,
            "failed": self.failed,
            "waiting": self.waiting,
        }


def results_of(comparison: Comparison) -> list[Result]:
    """Every method at every place, in the order of the grid.

    Quality is that of the last round, never the best round, which only the test set would know.
    """
    results = []
    for place in comparison.places:
        theirs = _qualities(comparison.runs(place, comparison.reference))
        for method in comparison.methods:
            runs = comparison.runs(place, method)
            ours = _qualities(runs)
            asked = comparison.asked(place, method)
            waiting = sum(c.run is None and c.error is None for c in asked)
            results.append(
                Result(
                    place,
                    method,
                    ours,
                    interval(list(ours.values())),
                    paired(ours, theirs) if method != comparison.reference else None,
                    _costs(list(runs.values())),
                    max((run.done for run in runs.values()), default=0),
                    len(asked) - len(ours) - waiting,
                    waiting,
                )
            )
    return results


def _qualities(runs: dict[int, Run]) -> dict[int, float]:
    """Final quality by seed, without runs that ended with no number."""
    found = {seed: run.quality(run.final) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _costs(runs: Sequence[Run]) -> dict[str, float]:
    """Means over the seeds; the largest of the seeds for memory, which is a limit."""
    found: dict[str, float] = {}
    for cost in COSTS:
        values = [v for run in runs if (v := cost.of(run)) is not None]
        if values:
            largest = cost.key == "memory"
            found[cost.key] = max(values) if largest else sum(values) / len(values)
    return found


def ends_of(metric: Metric, found: Interval | None) -> tuple[float, float] | None:
    """The interval as drawn: a share lies between 0 and 1."""
    if found is None or found.half is None:
        return None
    low, high = found.mean - found.half, found.mean + found.half
    return (max(low, 0.0), min(high, 1.0)) if metric.scale == "share" else (low, high)


def quality_text(metric: Metric, found: Interval | None) -> str:
    """As in "81.2 ± 0.9 %", "2.661 ± 0.012"; one seed has no interval."""
    if found is None:
        return words.ABSENT
    percent = " %" if metric.scale == "share" else ""
    return f"{words.number(metric, found.mean)}{_half(metric, found)}{percent}"


def difference_text(metric: Metric, found: Interval | None) -> str:
    """As in "+1.3 ± 0.8*"; a star where the interval leaves 0 out."""
    if found is None:
        return words.ABSENT
    star = "*" if found.half is not None and abs(found.mean) > found.half else ""
    return f"{words.number(metric, found.mean, '+')}{_half(metric, found)}{star}"


def _half(metric: Metric, found: Interval) -> str:
    return "" if found.half is None else f" ± {words.number(metric, found.half)}"
