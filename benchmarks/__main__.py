"""`make bench`: run all benchmarks, print their tables, keep them in docs/BENCHMARKS.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import forefed  # noqa: F401  (quiets the profiler before torch loads)
from benchmarks import (
    after_start,
    cross_fit,
    curvature,
    engines,
    family,
    first_model,
    forward,
    loop,
    memory,
    onnx_client,
    plan,
    reading,
    robust,
    scale,
    secure_sum,
    where,
    wire,
)
from benchmarks.table import machine_line

DOCS = Path(__file__).parents[1] / "docs" / "BENCHMARKS.md"
PARTS = {
    "loop": loop,
    "wire": wire,
    "scale": scale,
    "forward": forward,
    "engines": engines,
    "plan": plan,
    "memory": memory,
    "onnx_client": onnx_client,
    "first_model": first_model,
    "after_start": after_start,
    "cross_fit": cross_fit,
    "curvature": curvature,
    "where": where,
    "reading": reading,
    "robust": robust,
    "family": family,
    "secure_sum": secure_sum,
}

LONG = (
    *(
        "after_start",
        "cross_fit",
        "curvature",
        "where",
        "family",
        "first_model",
        "memory",
        "onnx_client",
        "robust",
    ),
    "secure_sum",
)
"""Made by name only: minutes, or data sets that are not shipped."""

HEAD = (
    "# Benchmarks\n\nMade by `make bench`, or part by part (`python -m benchmarks forward plan`). "
    "Ratios compare measurements of one run; absolute times are for orientation only. The load is "
    "that of the machine at the start of a part: above 1 or so, others were working, too."
)


def main() -> None:
    sections = read(DOCS.read_text(encoding="utf-8")) if DOCS.exists() else {}
    for name in sys.argv[1:] or [part for part in PARTS if part not in LONG]:
        measured = f"Part `{name}`: {machine_line()}"
        for title, text in PARTS[name].tables():
            print(f"\n{title}\n\n{text}", flush=True)
            sections[title] = f"{measured}\n\n{text}"
    parts = [HEAD, *(f"## {title}\n\n{text}" for title, text in sections.items())]
    DOCS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"\nwritten: {os.path.relpath(DOCS)}")


def read(page: str) -> dict[str, str]:
    """Sections of an earlier page by title; those measured anew take their places."""
    found = {}
    for part in page.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        found[title.strip()] = text.strip()
    return found


if __name__ == "__main__":
    main()
