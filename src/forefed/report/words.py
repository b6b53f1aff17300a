"""Numbers as people read them. Powers of 1000 throughout; an absent number is a dash."""

from __future__ import annotations

from collections.abc import Sequence

from forefed.core.intervals import Ends
from forefed.core.metrics import Metric
from forefed.core.sizes import format_bytes, format_duration

ABSENT = "–"
_SHOWN = {"share": (100, 1, " points"), "bits": (1, 3, ""), "number": (1, 3, "")}
"""By scale: what a value is multiplied by, its decimals, the unit of a difference."""


def size(count: float | None) -> str:
    """Bytes: 1.20 MB."""
    return ABSENT if count is None else format_bytes(count)


def duration(seconds: float | None) -> str:
    return ABSENT if seconds is None else format_duration(seconds)


def short(count: float | None) -> str:
    """A count in a card or on an axis: 950, 18.2 k, 3.1 M."""
    if count is None:
        return ABSENT
    for unit in ("", " k", " M", " G"):
        if abs(count) < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} T"


def whole(count: float | None) -> str:
    """A count in a table: 182,400."""
    return ABSENT if count is None else f"{count:,.0f}"


def times(ratio: float) -> str:
    """2.4 times, 31 times."""
    return f"{ratio:,.1f} times" if ratio < 10 else f"{ratio:,.0f} times"


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f} %"


def quality(metric: Metric | None, value: float | None, unit: bool = True) -> str:
    """61.2 % or 2.661 bits per byte."""
    if value is None or metric is None:
        return ABSENT
    sign = {"share": " %", "bits": f" {metric.title}" if unit else "", "number": ""}[metric.scale]
    return f"{number(metric, value)}{sign}"


def number(metric: Metric, value: float, sign: str = "") -> str:
    """The number alone; ``sign`` "+": with its sign."""
    scale, digits, _ = _SHOWN[metric.scale]
    return f"{scale * value:{sign}.{digits}f}"


def unit(metric: Metric) -> str:
    """The unit of a difference: " points"."""
    return f" {metric.title}" if metric.scale == "bits" else _SHOWN[metric.scale][2]


def difference(metric: Metric, value: float) -> str:
    """How far two qualities are apart: "1.3 points"."""
    return f"{number(metric, abs(value))}{unit(metric)}"


def reached(metric: Metric, value: float) -> str:
    """Quality with its name: "61.2 % accuracy", "2.661 bits per byte", "RMSE 0.523"."""
    if metric.scale == "number":
        return f"{metric.title} {quality(metric, value)}"
    return f"{quality(metric, value, unit=False)} {metric.title}"


def between(metric: Metric, ends: Ends | None) -> str:
    """An interval: "59.1 to 63.2"."""
    return "" if ends is None else " to ".join(number(metric, end) for end in ends)


def axis(metric: Metric) -> str:
    """The label of an axis of quality."""
    return metric.title if metric.higher_is_better else f"{metric.title} (lower is better)"


def tick(metric: Metric, value: float) -> str:
    """A number on that axis."""
    return f"{100 * value:.3g} %" if metric.scale == "share" else f"{value:.4g}"


def setting(value: object) -> str:
    """A setting or a fact of the environment."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def cut(text: str, length: int = 24) -> str:
    """A long name, shortened."""
    return text if len(text) <= length else text[: length - 1] + "…"


def sentence(text: str) -> str:
    """With a capital letter and one full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
