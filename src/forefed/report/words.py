"""Numbers as people read them. Powers of 1000 throughout; an absent number is a dash."""

from __future__ import annotations

import math

from forefed.report.read import Metric

ABSENT = "–"


def size(count: float | None) -> str:
    """Bytes: 1.2 MB."""
    if count is None:
        return ABSENT
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:,.3g} TB"


def short(count: float | None) -> str:
    """A count in a card or on an axis: 950, 18.2 thousand as 18.2 k, 3.1 M."""
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


def duration(seconds: float | None) -> str:
    """0.42 s, 12.3 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return ABSENT
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def quality(metric: Metric | None, value: float | None, unit: bool = True) -> str:
    """61.2 % or 2.661 bits per byte."""
    if value is None:
        return ABSENT
    if metric == "bits_per_byte":
        return f"{value:.3f} bits per byte" if unit else f"{value:.3f}"
    return f"{100 * value:.1f} %"


def title(metric: Metric | None) -> str:
    """What quality is called."""
    return {"f1": "F1", "bits_per_byte": "bits per byte"}.get(metric or "", "accuracy")


def always(metric: Metric | None) -> str:
    """What costs nothing and is compared with."""
    return "never an answer" if metric == "f1" else "most frequent class"


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


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listing(parts: list[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def margin(accuracy: float, n: int) -> float:
    """Half the width of the 95 % interval of an accuracy measured on ``n`` examples.

    Source: Agresti and Coull 1998 ("add two successes and two failures"), which stays above zero
    at accuracies of 0 and 1. It covers the choice of test examples only, not the run's own luck.
    For an F1 it is wide enough: no numbers from 0 to 1 spread more than noughts and ones.
    """
    middle = (accuracy * n + 2) / (n + 4)
    return 1.96 * math.sqrt(middle * (1 - middle) / (n + 4))
