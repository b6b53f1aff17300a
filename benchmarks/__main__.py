"""`make bench`: run all benchmarks, print their tables, keep them in docs/BENCHMARKS.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import forefed  # noqa: F401  (quiets the profiler before torch loads)
from benchmarks import engines, forward, loop, plan, wire
from benchmarks.table import machine_lines

DOCS = Path(__file__).parents[1] / "docs" / "BENCHMARKS.md"
PARTS = {"loop": loop, "wire": wire, "forward": forward, "engines": engines, "plan": plan}


def main() -> None:
    chosen = sys.argv[1:] or list(PARTS)
    parts = [
        "# Benchmarks",
        "Made by `make bench`. Ratios compare measurements of one run; absolute times "
        "are for orientation only.",
        *machine_lines(),
    ]
    for name in chosen:
        for title, text in PARTS[name].tables():
            print(f"\n{title}\n\n{text}", flush=True)
            parts += [f"## {title}", text]
    if set(chosen) == set(PARTS):
        DOCS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(f"\nwritten: {os.path.relpath(DOCS)}")


if __name__ == "__main__":
    main()
