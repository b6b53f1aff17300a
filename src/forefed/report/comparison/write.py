"""A comparison as a whole, and where it is written: ``results.json``, ``results.md`` and
``results.html`` beside ``study.json``."""

from __future__ import annotations

from pathlib import Path

from forefed.core.files import write_atomic, write_json
from forefed.report import words
from forefed.report.comparison import parts, pictures
from forefed.report.comparison.cells import Comparison, read_comparison
from forefed.report.comparison.results import Result, results_of
from forefed.report.content import Section, Table
from forefed.report.pages import render


def sections_of(comparison: Comparison) -> tuple[list[Result], list[Section]]:
    """All of them, in the order in which they are read."""
    results = results_of(comparison)
    sections = [
        parts.overview(comparison, results),
        parts.main(comparison, results),
        parts.failed(comparison),
        parts.loses(comparison, results),
        parts.beside(comparison),
        pictures.curves(comparison),
        pictures.doubted(comparison),
        parts.budgets(comparison, results),
        parts.targets(comparison, results),
        pictures.robust(comparison, results),
        parts.tuning(comparison),
        parts.protocol(comparison),
    ]
    return results, [section for section in sections if not section.empty]


def write_results(folder: Path) -> None:
    """The results of the comparison in ``folder``; raises like ``read_comparison``."""
    comparison = read_comparison(folder)
    results, sections = sections_of(comparison)
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
        "title": f"Comparison: {comparison.study['name']}",
        "sections": sections,
        "kicker": " · ".join([cells, words.plural(len(comparison.methods), "method"), seeds]),
        "source": f"Made by Forefed from the records of {cells}.",
    }
    write_atomic(folder / "results.md", render("comparison.md.j2", **context).encode())
    write_atomic(folder / "results.html", render("comparison.html.j2", **context).encode())


def main_tables(folder: Path) -> list[Table]:
    """The main table of every place, and where each method loses (for the terminal)."""
    comparison = read_comparison(folder)
    results = results_of(comparison)
    return [*parts.main(comparison, results).tables, *parts.loses(comparison, results).tables]
