"""The result in plain words: what a run reached, against what costs nothing.

A sentence here never says more than the numbers do: a difference inside the sampling error of the
test set is called one, and a run below its baseline is told so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    if run.metric == "bits_per_byte":
        return f"{start}. {_language(run, value)}{_since_best(run, value)}"
    return f"{start}. {_share(run, final, value)}{_since_best(run, value)}"


def _state(run: Run) -> str:
    if run.finished:
        return f"Finished after {words.plural(run.done, 'round')}"
    planned = "" if run.planned is None else f" of {run.planned:,}"
    return f"Not finished: {run.done:,}{planned} rounds are recorded"


def _share(run: Run, final: Json, value: float) -> str:
    n = int(finite(final.get("n")) or 0)
    spread = words.margin(value, n) if n else 0.0
    share = f"{100 * value:.1f} % (± {100 * spread:.1f})"
    if run.metric == "f1":
        exact = 100 * (finite(final.get("exact_match")) or 0.0)
        text = (
            f"The model's answers to {n:,} test questions have an F1 of {share}, and {exact:.1f} % "
            f"are exactly right{_at(run, final)}"
        )
    else:
        text = f"The model labels {share} of {n:,} test texts correctly{_at(run, final)}"
    if run.untrained is not None:
        what = "the F1" if run.metric == "f1" else "it"
        text += f"; before training {what} was {100 * run.untrained:.1f} %"
    if run.majority is None:
        return f"{text}."
    always = f"{_always(run)}, {100 * run.majority:.1f} %"
    gain = value - run.majority
    if gain > spread:
        return f"{text}. That is {100 * gain:.1f} points above {always}."
    if gain >= -spread:
        return f"{text}. That is no better than {always}."
    return f"{text}. That is worse than {always}."


def _always(run: Run) -> str:
    return "never answering" if run.metric == "f1" else "always naming the most frequent class"


def _language(run: Run, value: float) -> str:
    text = f"The model needs {value:.3f} bits per byte of test text{_at(run, run.final)}"
    before = run.untrained
    if before is None:
        return f"{text}."
    if value < before:
        saved = 100 * (1 - value / before)
        return f"{text}, {saved:.1f} % less than the {before:.3f} before training."
    return f"{text}. That is no better than the {before:.3f} before training."


def _at(run: Run, line: Json | None) -> str:
    """Says the round when the last evaluation is not the last round's."""
    last = run.rounds[-1]["round"] if run.rounds else 0
    return "" if line is None or line["round"] == last else f" at round {line['round']:,}"


def _since_best(run: Run, value: float) -> str:
    """Mentions an earlier evaluation that was better by more than chance."""
    best = run.quality(run.best)
    if best is None or run.best is None:
        return ""
    n = int(finite(run.best.get("n")) or 0)
    share = run.metric != "bits_per_byte"
    slack = words.margin(best, n) if share and n else 0.01 * best
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
    share = metric != "bits_per_byte"
    scored.sort(key=lambda item: item[0], reverse=share)
    (first, run, label), (second, other, next_label) = scored[:2]
    text = (
        f"Of {len(runs)} runs, {label} ends with the best result, {words.quality(metric, first)}; "
        f"{next_label} follows with {words.quality(metric, second)}."
    )
    if share:
        counts = [int(finite((r.final or {}).get("n")) or 0) for r in (run, other)]
        if all(counts):
            noise = math.hypot(words.margin(first, counts[0]), words.margin(second, counts[1]))
            gap = 100 * (first - second)
            chance = f"what the choice of test texts explains (± {100 * noise:.1f})"
            text += (
                f" The difference of {gap:.1f} points is larger than {chance}."
                if first - second > noise
                else f" The difference of {gap:.1f} points lies within {chance}: neither is shown "
                "to be better."
            )
    text += _price(run, label, other, next_label)
    beaten = [
        f"{name} ({words.quality(metric, value)} against {words.quality(metric, r.majority)})"
        for value, r, name in scored
        if share and r.majority is not None and value <= r.majority
    ]
    if beaten:
        text += f" No better than {_always(run)}: {', '.join(beaten)}."
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
            times = f"{ratio:,.1f}" if ratio < 10 else f"{ratio:,.0f}"
            dearer[label if mine > theirs else other_label].append(f"{times} times the {what}")
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
