"""Markdown tables, and the lines that say what machine they were measured on."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Sequence

from forefed.run.record import environment


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def machine_lines() -> list[str]:
    facts = environment()
    versions = ", ".join(f"{k} {facts[k]}" for k in ("forefed", "torch", "transformers", "peft"))
    return [
        f"{datetime.date.today()}, {facts['processor']}, {facts['threads']} threads, "
        f"Python {facts['python']}, {versions}."
    ]


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median over ``repeats`` runs after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
