"""What a finished run should have reached and did not, with the remedy; said wherever a result is.

A difference counts where it is larger than the 95 % interval of the result, that is, more than
another draw of test examples explains; without an interval, 1 % of the value stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from forefed.core.intervals import Ends
from forefed.core.metrics import Measures, Metric

UNTRAINED = "untrained"
"""The baseline that is the model itself before the first round."""
HEAD = "head alone"
"""The baseline that is the model before the first round, where its head was solved (``start``)."""
_SLACK = 0.01


def shortfalls(
    measures: Measures,
    final: Mapping[str, Any],
    best: Mapping[str, Any] | None,
    baseline: Mapping[str, Any],
) -> list[str]:
    """One sentence each, the worst first; none of a run that has nothing to mend.

    Args:
        final: the last evaluation; ``best``: the best one.
        baseline: what costs less, by name, on the metric that decides; no number is skipped.
    """
    metric, value = measures.decides, measures.decides.of(final)
    if value is None:
        return ["the last evaluation is no number: lower client.optimiser.lr and server.lr"]
    ends = interval(metric, final)
    found: list[tuple[float, str]] = []
    for name, better in _numbers(baseline):
        gap = metric.sign * (better - value)
        if gap > 0 and _outside(better, ends):
            shown = measures.baseline_name(name)
            found.append((gap, f"worse than {shown}, {better:.3f}: {_remedy(name)}"))
    top = metric.of(best)
    gap = metric.sign * ((value if top is None else top) - value)
    if best is not None and top is not None and gap > 0 and _outside(top, ends):
        said = (
            f"round {best['round']:,} was better, {top:.3f}: end there (rounds = "
            f'{best["round"]}), lower the rates, or set server.schedule = ["linear"]'
        )
        found.append((gap, said))
    return [text for _, text in sorted(found, key=lambda item: -item[0])]


def interval(metric: Metric, line: Mapping[str, Any]) -> Ends:
    """Of an evaluation; a little around its value where it has none."""
    low, high = (Metric(end, end).of(line) for end in ("low", "high"))
    if low is not None and high is not None:
        return low, high
    value = metric.of(line) or 0.0
    return value - _SLACK * abs(value), value + _SLACK * abs(value)


def _outside(value: float, ends: Ends) -> bool:
    return not ends[0] <= value <= ends[1]


def _numbers(baseline: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in baseline:
        value = Metric(name, name).of(baseline)
        if value is not None:
            yield name, value


def _remedy(name: str) -> str:
    if name == HEAD:
        return "the rounds have harmed: lower client.optimiser.lr, or set rounds = 0"
    if name == UNTRAINED:
        return "training has harmed: lower client.optimiser.lr and server.lr"
    if name == "majority":
        return "nothing is learnt: set more rounds, or other rates (forefed compare --tune)"
    return "what costs less does more: use it, or set other rates and more rounds"
