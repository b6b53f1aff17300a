"""Three views of a comparison: quality under a budget, cost to a target, robustness.

Source of the views: EdgeFlowerTune (quality under a budget, cost to a target, robustness). All are
read from the evaluations along the runs, so they are as fine as ``evaluate.every``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forefed.report import words
from forefed.report.comparison.cells import Comparison, Place
from forefed.report.comparison.results import Interval, Result, interval, quality_text
from forefed.report.content import Table
from forefed.report.read import Cost, Run, finite

NEAR = 0.95
"""Part of a final quality that counts as having reached it."""
RUNNING: tuple[tuple[Cost, str, Callable[[float | None], str]], ...] = (
    ("bytes", "bytes both ways", words.size),
    ("forwards", "forward-equivalents", words.short),
)


@dataclass(frozen=True)
class Budgeted:
    """What every method reaches within one budget; methods that do not fit are missing."""

    title: str
    reached: dict[str, Interval]


def under_budgets(
    comparison: Comparison, place: Place, results: Sequence[Result]
) -> list[Budgeted]:
    """Quality at the last evaluation within each budget (memory: final quality, where it fits).

    Budgets are the study's; else a quarter of what the cheapest method took in all, the cheapest's,
    the dearest's, and one between; for memory, what each method needs.
    """
    here = {r.method: r for r in results if r.place == place}
    asked = comparison.study["budgets"]
    needs = {m: r.costs["memory"] for m, r in here.items() if "memory" in r.costs}
    found = []
    for limit in asked["memory"] or spread({rounded_up(x) for x in needs.values()}):
        reached = {
            m: r.quality for m, r in here.items() if r.quality and needs.get(m, math.inf) <= limit
        }
        found.append(Budgeted(f"memory above weights ≤ {words.size(limit)}", reached))
    runs = {m: comparison.runs(place, m) for m in comparison.methods}
    for cost, title, text in RUNNING:
        totals = [max(r.spent(cost).values()) for some in runs.values() for r in some.values()]
        for limit in asked[cost] or _budgets([x for x in totals if x > 0]):
            within = {
                m: [_quality_within(run, cost, limit) for run in some.values()]
                for m, some in runs.items()
            }
            whole = {
                m: mean
                for m, values in within.items()
                if None not in values and (mean := interval([v for v in values if v is not None]))
            }
            found.append(Budgeted(f"{title} ≤ {text(limit)}", whole))
    return found


def _budgets(totals: Sequence[float]) -> list[float]:
    if not totals:
        return []
    low, high = min(totals), max(totals)
    chosen = {rounded_up(x) for x in (low / 4, low, math.sqrt(low * high), high)}
    return sorted(chosen)


def spread(values: set[float], most: int = 4) -> list[float]:
    """At most ``most`` of the values, with the smallest and the largest."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def rounded_up(value: float) -> float:
    """The next number of two digits: 52,123 -> 53,000."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(round(value / unit, 6)) * unit


def _quality_within(run: Run, cost: Cost, limit: float) -> float | None:
    """At the last evaluation that the budget allows; None if it allows no round at all."""
    spent = run.spent(cost)
    within = [e for e in run.tests if e["round"] > 0 and spent.get(e["round"], math.inf) <= limit]
    return run.quality(within[-1]) if within else None


@dataclass(frozen=True)
class Reached:
    """What a method took until it first had a quality; means over the seeds that got there."""

    seeds: int
    of: int
    rounds: float = math.nan
    bytes: float = math.nan
    forwards: float = math.nan

    def texts(self) -> tuple[str, str, str]:
        if not self.seeds:
            return (words.ABSENT,) * 3
        some = "" if self.seeds == self.of else f" ({self.seeds} of {self.of} seeds)"
        return f"{self.rounds:.4g}{some}", words.size(self.bytes), words.short(self.forwards)


def target_of(comparison: Comparison, results: Sequence[Result], place: Place) -> float | None:
    """The study's target, or 95 % of the best method's final quality at this place."""
    given = finite(comparison.study["target"])
    if given is not None:
        return given
    finals = [r.quality.mean for r in results if r.place == place and r.quality]
    if not finals:
        return None
    sign = comparison.metric.sign
    best = sign * max(sign * final for final in finals)
    return near(comparison, best)


def near(comparison: Comparison, quality: float) -> float:
    """95 % of a quality of which more is better; of others 1 / 0.95 times as many."""
    return quality * NEAR if comparison.metric.higher_is_better else quality / NEAR


def cost_to(comparison: Comparison, runs: Sequence[Run], targets: Sequence[float]) -> Reached:
    """What the runs took until the first evaluation that reached each run's target."""
    found: list[tuple[float, float, float]] = []
    for run, target in zip(runs, targets, strict=True):
        for line in run.tests:
            value = run.quality(line)
            if value is not None and not comparison.better(target, value):
                at = line["round"]
                found.append((at, run.spent("bytes")[at], run.spent("forwards")[at]))
                break
    if not found:
        return Reached(0, len(runs))
    means = [sum(column) / len(found) for column in zip(*found, strict=True)]
    return Reached(len(found), len(runs), *means)


@dataclass(frozen=True)
class Robustness:
    """Quality by the values of one setting: rows of intervals, one per method."""

    key: str
    dataset: str
    values: tuple[Any, ...]
    others: tuple[tuple[str, Any], ...]
    by_method: dict[str, tuple[Interval | None, ...]]


def robustness(comparison: Comparison, results: Sequence[Result]) -> list[Robustness]:
    """Per data set and setting under ``over`` with two values or more, the other settings at their
    first value."""
    found, quality = [], {(r.place, r.method): r.quality for r in results}
    firsts: dict[str, Place] = {}
    for place in comparison.places:
        firsts.setdefault(place.dataset, place)
    for first in firsts.values():
        for key in comparison.over:
            others = tuple(x for x in first.condition if x[0] != key)
            slices = [
                p
                for p in comparison.places
                if (p.dataset, tuple(x for x in p.condition if x[0] != key))
                == (first.dataset, others)
            ]
            if len(slices) > 1:
                values = tuple(dict(p.condition)[key] for p in slices)
                rows = {m: tuple(quality[p, m] for p in slices) for m in comparison.methods}
                found.append(Robustness(key, first.dataset, values, others, rows))
    return found


def budget_table(comparison: Comparison, found: Sequence[Budgeted], caption: str) -> Table:
    """One row per budget, one column per method, the best in bold."""
    rows, bold = [], set()
    for number, budget in enumerate(found):
        means = {m: i.mean for m, i in budget.reached.items()}
        for column, method in enumerate(comparison.methods, 1):
            beaten = any(comparison.better(x, means.get(method, x)) for x in means.values())
            if method in means and len(means) > 1 and not beaten:
                bold.add((number, column))
        texts = (quality_text(comparison.metric, budget.reached.get(m)) for m in comparison.methods)
        rows.append((budget.title, *texts))
    return Table(("budget", *comparison.methods), rows, caption, bold=frozenset(bold))
