"""Where each method loses, in a sentence made from the numbers; and whether the seeds paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forefed.report import words
from forefed.report.comparison.cells import Comparison
from forefed.report.comparison.results import COSTS, Result, paired
from forefed.report.facts import compare, flat
from forefed.report.read import Run

LITTLE = 1.1
"""Costs below so many times the cheapest are not called a loss."""


def losses(comparison: Comparison, results: Sequence[Result]) -> list[tuple[str, str]]:
    """(method, its worst view): the largest gap in quality and the largest ratio of costs, over all
    places, each to the best method there."""
    return [(m, _worst(comparison, results, m)) for m in comparison.methods]


def _worst(comparison: Comparison, results: Sequence[Result], method: str) -> str:
    gaps: list[tuple[float, str]] = []
    ratios: list[tuple[float, str]] = []
    for place in comparison.places:
        here = [r for r in results if r.place == place and r.quality]
        ours = next((r for r in here if r.method == method), None)
        if ours is None or ours.quality is None or len(here) < 2:
            continue
        where = f" ({place.label})" if place.label else ""
        best = here[0]
        for other in here:
            if other.quality and best.quality:
                better = comparison.better(other.quality.mean, best.quality.mean)
                best = other if better else best
        gap = paired(ours.qualities, best.qualities)
        if best is not ours and gap is not None:
            gaps.append(
                (abs(gap.mean), f"{_gap_text(comparison, gap.mean, gap.half, best)}{where}")
            )
        for cost in COSTS:
            known = [(r.costs[cost.key], r.method) for r in here if r.costs.get(cost.key)]
            own = ours.costs.get(cost.key)
            if own and known and own > LITTLE * min(known)[0]:
                cheapest, name = min(known)
                times = own / cheapest
                ratios.append((times, f"{words.times(times)} the {cost.title} of {name}{where}"))
    said = [max(found)[1] for found in (gaps, ratios) if found]
    return "; ".join(said) or "nowhere: best or within a tenth of the best in every column"


def _gap_text(comparison: Comparison, gap: float, half: float | None, best: Result) -> str:
    metric = comparison.metric
    unit, side = words.unit(metric), "below" if metric.higher_is_better else "above"
    text = words.number(metric, abs(gap))
    if half is None:
        return f"{text}{unit} {side} {best.method}, on one seed"
    sure = "" if abs(gap) > half else ", which the seeds do not tell from 0"
    return f"{text} ± {words.number(metric, half)}{unit} {side} {best.method}{sure}"


def pairing(comparison: Comparison) -> str:
    """Whether, with one seed, all methods had the same clients and the same cohorts."""
    broken: list[str] = []
    compared = 0
    for place in comparison.places:
        by_method = {m: comparison.runs(place, m) for m in comparison.methods}
        theirs = by_method[comparison.reference]
        for method, runs in by_method.items():
            for seed in runs.keys() & theirs.keys():
                if method == comparison.reference:
                    continue
                compared += 1
                reason = _unpaired(runs[seed], theirs[seed])
                text = f"{method} has {reason}"
                if reason and text not in broken:
                    broken.append(text)
    if broken:
        listed = words.listing(broken)
        return f"Not paired with {comparison.reference}: {listed}. Differences hold chance in them."
    if not compared:
        return ""
    return (
        f"Paired: with one seed every method had the same clients' data, the same test rows and "
        f"the same cohorts as {comparison.reference} (checked in the records of "
        f"{words.plural(compared, 'pair')})."
    )


def _unpaired(a: Run, b: Run) -> str:
    if a.partition.get("digest") != b.partition.get("digest"):
        return "other clients' data"
    if _tokens(a) != _tokens(b):
        return "other training or test rows"
    cohorts = zip(a.rounds, b.rounds, strict=False)
    if any(x.get("cohort") != y.get("cohort") for x, y in cohorts):
        return "other cohorts"
    return ""


def _tokens(run: Run) -> object:
    return (run.environment.get("data") or {}).get("tokens")


def settings_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """(setting, value per method), of every method's first finished run at the first place."""
    runs = [
        next(iter(comparison.runs(comparison.places[0], method).values()), None)
        for method in comparison.methods
    ]
    tables = [flat(run.config) if run else {} for run in runs]
    shown = [{key: _short(value) for key, value in table.items()} for table in tables]
    return compare(shown, ("name", "out", "seed"))


def _short(value: object) -> object:
    """Of a path on this machine its last two parts, which say what it is."""
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(["...", *Path(value).parts[-2:]])
    return value
