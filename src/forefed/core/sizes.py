"""Sizes in bytes as people write them ("150MB", "1.5 GiB"), and times."""

from __future__ import annotations

import re

from forefed.core.errors import UserError

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_bytes(raw: int | str, where: str = "") -> int:
    """A number of bytes from an int, or from text with a unit.

    kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB powers of 1024; the B may be left out.

    Raises:
        UserError: no size, zero or less; names the place ``where``.
    """
    if isinstance(raw, int) and not isinstance(raw, bool) and raw > 0:
        return raw
    match = _PATTERN.fullmatch(raw.strip()) if isinstance(raw, str) else None
    if match:
        number, unit, binary = match.groups()
        base = 1024 if binary else 1000
        size = round(float(number) * base ** _POWERS[unit.lower()])
        if size > 0 and not (binary and not unit):
            return size
    place = f"{where}: " if where else ""
    raise UserError(f"{place}{raw!r} is no size; write for example 150MB, 1.5 GiB or 4G")


def format_bytes(n: float) -> str:
    """Three significant digits with a unit of 1000: "947 B", "12.1 MB", "1.43 GB"."""
    for unit in ("B", "kB", "MB", "GB"):  # noqa: B007
        if abs(n) < 999.5:
            break
        n /= 1000
    else:
        unit = "TB"
    decimals = 0 if unit == "B" or abs(n) >= 99.95 else 1 if abs(n) >= 9.995 else 2
    return f"{n:.{decimals}f} {unit}"


def format_duration(seconds: float) -> str:
    """Three significant digits: "45.3 ms", "0.42 s", "12.3 s"; then "3 min 20 s", "2 h 05 min"."""
    if seconds < 0.09995:
        return f"{1000 * seconds:.3g} ms" if seconds else "0 s"
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
