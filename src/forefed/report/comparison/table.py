"""The main table: quality with its interval, what it cost, and how far from the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import words
from forefed.report.comparison.cells import Comparison, Place
from forefed.report.comparison.statistics import Interval, interval, paired
from forefed.report.read import Run
from forefed.report.tables import down_per_order, up_per_answer


@dataclass(frozen=True)
class Cost:
    """One measure of what a run took: less is better."""

    key: str
    title: str
    of: Callable[[Run], float | None]
    text: Callable[[float | None], str]


def _client_seconds(run: Run) -> float | None:
    replies = run.total("replies")
    spent = sum((line.get("seconds") or {}).get("clients") or 0.0 for line in run.rounds)
    return spent / replies if replies else None


COSTS: tuple[Cost, ...] = (
    Cost("up_each", "bytes up per answer", up_per_answer, words.size),
    Cost("down_each", "bytes down per order", down_per_order, words.size),
    Cost("bytes_up", "bytes up in all", lambda r: r.total("bytes_up"), words.size),
    Cost("bytes_down", "bytes down in all", lambda r: r.total("bytes_down"), words.size),
    Cost("forwards", "forward-equivalents", lambda r: r.total("forwards"), words.short),
    Cost("memory", "memory above weights", lambda r: r.memory("peak_above_weights"), words.size),
    Cost("seconds_each", "seconds of a client's round", _client_seconds, words.duration),
)


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
            "quality": self.quality and self.quality.to_json(),
            "by_seed": {str(seed): value for seed, value in self.qualities.items()},
            "difference": self.difference and self.difference.to_json(),
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
            asked = [
                c
                for c in comparison.cells
                if (c.dataset, c.condition, c.method) == (place.dataset, place.condition, method)
            ]
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


def quality_text(metric: Metric, found: Interval | None) -> str:
    """As in "81.2 ± 0.9 %", "2.661 ± 0.012"; one seed has no interval."""
    if found is None:
        return words.ABSENT
    scale, digits, _ = words.scaled(metric)
    spread = "" if found.half is None else f" ± {scale * found.half:.{digits}f}"
    percent = " %" if metric.scale == "share" else ""
    return f"{scale * found.mean:.{digits}f}{spread}{percent}"


def difference_text(metric: Metric, found: Interval | None) -> str:
    """As in "+1.3 ± 0.8 points"; a star where the interval leaves 0 out."""
    if found is None:
        return words.ABSENT
    scale, digits, _ = words.scaled(metric)
    text = f"{scale * found.mean:+.{digits}f}"
    if found.half is not None:
        star = "*" if abs(found.mean) > found.half else ""
        text += f" ± {scale * found.half:.{digits}f}{star}"
    return text
