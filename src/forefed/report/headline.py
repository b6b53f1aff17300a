"""The result in plain words: what a run reached, against what costs nothing.

A sentence here never says more than the numbers do: a difference inside the sampling error of the
test set is called one, and a run below its baseline is told so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forefed.core.intervals import Ends
from forefed.core.shortfalls import HEAD, UNTRAINED
from forefed.core.types import Json
from forefed.report import words
from forefed.report.read import Run, finite, run_labels


def headline(runs: Sequence[Run]) -> str:
    """One to four sentences about one run, or about several of them together."""
    return _one(runs[0]) if len(runs) == 1 else _several(runs)


def _one(run: Run) -> str:
    start = _state(run)
    final, value = run.final, run.quality(run.final)
    if final is None:
        return f"{start}, and there is no evaluation yet."
    if value is None:
        return f"{start}. The last evaluation is not a number: training diverged."
    return f"{start}. {_reached(run, final, value)}{_since_best(run, value)}{_private(run)}"


def _state(run: Run) -> str:
    attack = run.environment.get("attack")
    under = f"Under an attack ({attack['told']}): " if isinstance(attack, dict) else ""
    return under + _ended(run)


def _ended(run: Run) -> str:
    status, reason = (str((run.summary or {}).get(key, "")) for key in ("status", "reason"))
    if run.finished and reason:
        return f"Ended as '{status}' after {words.plural(run.done, 'round')} ({reason})"
    if run.finished:
        return f"Finished after {words.plural(run.done, 'round')}"
    planned = "" if run.planned is None else f" of {run.planned:,}"
    return f"Not finished: {run.done:,}{planned} rounds are recorded"


def _reached(run: Run, final: Json, value: float) -> str:
    assert run.measures and run.metric
    metric, n = run.metric, int(finite(final.get("n")) or 0)
    ends = run.interval(final)
    beside = [f"95 %: {words.between(metric, ends)}"] if ends else []
    for other in run.measures.metrics[1:2]:
        more = other.of(final)
        beside += [] if more is None else [words.reached(other, more)]
    known = f" ({'; '.join(beside)})" if beside else ""
    text = f"The model reaches {words.reached(metric, value)}{known}"
    text += f" on {n:,} test {run.measures.terms}{_at(run, final)}"
    if run.untrained is not None:
        before = words.quality(metric, run.untrained, unit=False)
        if not metric.higher_is_better and value < run.untrained:
            saved = 100 * (1 - value / run.untrained)
            text += f", {saved:.1f} % less than the {before} before training"
        else:
            when = "with its solved head alone" if run.start else "before training"
            text += f"; {when} it was {before}"
    cheaper = {name: x for name, x in run.baselines.items() if name not in (UNTRAINED, HEAD)}
    if not cheaper:
        gained = run.untrained is None or metric.sign * (value - run.untrained) > 0
        return f"{text}." if gained else f"{text}. That is no better than before."
    name, best = max(cheaper.items(), key=lambda item: metric.sign * item[1])
    always = f"{name}, {words.quality(metric, best)}"
    gap = metric.sign * (value - best)
    low, high = ends or (value, value)
    if low > best or high < best:
        if gap < 0:
            return f"{text}. That is worse than {always}."
        side = "above" if metric.higher_is_better else "below"
        return f"{text}. That is {words.difference(metric, gap)} {side} {always}."
    return f"{text}. That is no better than {always}."


def _private(run: Run) -> str:
    """What the run let out of its clients' data, where it accounts for that."""
    return "".join(f" Let out: {each.get('text')}." for each in run.privacy)


def _half(ends: Ends | None) -> float:
    """Half the width of an interval; 0 where there is none."""
    return (ends[1] - ends[0]) / 2 if ends else 0.0


def _at(run: Run, line: Json | None) -> str:
    """Says the round when the last evaluation is not the last round's."""
    last = run.rounds[-1]["round"] if run.rounds else 0
    return "" if line is None or line["round"] == last else f" at round {line['round']:,}"


def _since_best(run: Run, value: float) -> str:
    """Mentions an earlier evaluation that was better by more than chance."""
    best = run.quality(run.best)
    if best is None or run.best is None:
        return ""
    slack = _half(run.interval(run.best)) or 0.01 * abs(best)
    if abs(best - value) <= slack:
        return ""
    reached = words.quality(run.metric, best)
    return f" It had been better: {reached} at round {run.best['round']:,}."


def _several(runs: Sequence[Run]) -> str:
    labels = run_labels(runs)
    scored = [
        (value, run, label)
        for run, label in zip(runs, labels, strict=True)
        if (value := run.quality(run.final)) is not None
    ]
    if len(scored) < 2:
        return f"{len(runs)} runs; fewer than two have a result so far, so nothing is compared."
    metric = scored[0][1].metric
    assert metric
    scored.sort(key=lambda item: metric.sign * item[0], reverse=True)
    (first, run, label), (second, other, next_label) = scored[:2]
    text = (
        f"Of {len(runs)} runs, {label} ends with the best result, {words.quality(metric, first)}; "
        f"{next_label} follows with {words.quality(metric, second)}."
    )
    halves = [_half(r.interval(r.final)) for r in (run, other)]
    if all(halves):
        noise, gap = math.hypot(*halves), abs(first - second)
        said = f"The difference of {words.difference(metric, gap)}"
        chance = f"what the choice of test texts explains (± {words.difference(metric, noise)})"
        text += (
            f" {said} is larger than {chance}."
            if gap > noise
            else f" {said} lies within {chance}: neither is shown to be better."
        )
    text += _price(run, label, other, next_label)
    beaten = [
        f"{name} ({words.quality(metric, value)} against {words.quality(metric, r.majority)})"
        for value, r, name in scored
        if r.majority is not None and metric.sign * (value - r.majority) <= 0
    ]
    if beaten:
        text += f" No better than {metric.chance}: {', '.join(beaten)}."
    open_runs = [name for r, name in zip(runs, labels, strict=True) if not r.finished]
    if open_runs:
        text += f" Not finished: {', '.join(open_runs)}."
    return text + _comparability(runs)


def _price(run: Run, label: str, other: Run, other_label: str) -> str:
    """What two runs cost relative to each other, where it differs by half or more."""
    costs = {
        "bytes": [r.total("bytes_up") + r.total("bytes_down") for r in (run, other)],
        "forward-equivalents": [r.total("forwards") for r in (run, other)],
        "memory above weights": [r.memory("peak_above_weights") or 0.0 for r in (run, other)],
    }
    dearer: dict[str, list[str]] = {label: [], other_label: []}
    for what, (mine, theirs) in costs.items():
        if mine and theirs and max(mine, theirs) >= 1.5 * min(mine, theirs):
            ratio = max(mine, theirs) / min(mine, theirs)
            dearer[label if mine > theirs else other_label].append(
                f"{words.times(ratio)} the {what}"
            )
    return "".join(
        f" {name} took {words.listing(parts)} of {cheaper}."
        for (name, parts), cheaper in zip(dearer.items(), (other_label, label), strict=True)
        if parts
    )


def _comparability(runs: Sequence[Run]) -> str:
    """Warns when the runs were not tested on the same texts."""
    data = [run.environment.get("data") for run in runs]
    if any(item != data[0] for item in data):
        return " The runs' data differ (texts, split or tokenizer): compare with care."
    return ""
