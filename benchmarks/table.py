"""Markdown tables, and the lines that say what machine they were measured on."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Sequence

from forefed.run.record import environment


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def machine_line() -> str:
    facts = environment()
    versions = ", ".join(f"{k} {facts[k]}" for k in ("forefed", "torch", "transformers", "peft"))
    return (
        f"{datetime.datetime.now():%Y-%m-%d %H:%M}, load {os.getloadavg()[0]:.1f}, "
        f"{facts['processor']}, {facts['threads']} threads, Python {facts['python']}, {versions}."
    )


def seconds(work: Callable[[], object], most: int = 8) -> float:
    """What the machine can do when left alone: the quickest of a few runs after a warm-up.

    Runs until the two quickest agree to 5 %, at least two and at most ``most``: on a machine that
    others use, too, two runs that agree by chance are both slowed, but rarely.
    """
    work()
    times: list[float] = []
    while len(times) < most:
        start = time.perf_counter()
        work()
        times = sorted([*times, time.perf_counter() - start])
        if len(times) > 1 and times[1] < 1.05 * times[0]:
            break
    return times[0]
