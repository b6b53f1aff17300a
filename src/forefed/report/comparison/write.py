"""Writes ``results.json``, ``results.md`` and ``results.html`` beside ``study.json``."""

from __future__ import annotations

from pathlib import Path

from forefed.core.files import write_atomic, write_json
from forefed.report import palette, words
from forefed.report.comparison.cells import read_comparison
from forefed.report.comparison.parts import main_part, parts_of
from forefed.report.comparison.table import results_of
from forefed.report.pages import render


def write_results(folder: Path) -> None:
    """The results of the comparison in ``folder``; raises like ``read_comparison``."""
    comparison = read_comparison(folder)
    results, parts = parts_of(comparison)
    title = f"Comparison: {comparison.study['name']}"
    write_json(
        folder / "results.json",
        {
            "study": comparison.study["name"],
            "metric": comparison.metric.key,
            "reference": comparison.reference,
            "results": [result.to_json() for result in results],
            "tuning": comparison.study["tuning"],
        },
    )
    cells = words.plural(len(comparison.cells), "cell")
    seeds = words.plural(len(comparison.study["seeds"]), "seed")
    context = {
        "title": title,
        "parts": parts,
        "kicker": " · ".join([cells, words.plural(len(comparison.methods), "method"), seeds]),
        "legend": [palette.line_swatch(i) + name for i, name in enumerate(comparison.methods)],
        "source": f"Made by Forefed from the records of {cells}.",
    }
    write_atomic(folder / "results.md", render("comparison.md.j2", **context).encode())
    write_atomic(folder / "results.html", render("comparison.html.j2", **context).encode())


def main_tables(folder: Path) -> list[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]]:
    """Of every place its label, and heads and rows of the main table (for the terminal)."""
    comparison = read_comparison(folder)
    part = main_part(comparison, results_of(comparison))
    return [(label, table.heads, table.rows) for label, table in part.tables]
