"""Pages from templates: one HTML file with its style sheet, no script, nothing loaded.

Whatever comes from a record (names, labels, settings) is text to a page: jinja2 escapes it. Only
what is ``Markup`` is HTML already: drawings, swatches and the style sheet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from forefed.report import palette
from forefed.report.tables import Row

Sections = list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Figure:
    """A plot as SVG text, with a legend of texts or HTML."""

    title: str
    caption: str
    svg: str
    wide: bool = False
    legend: tuple[str, ...] = ()

    @property
    def drawing(self) -> Markup:
        """The plot, with words for those who do not see it."""
        label = Markup('<svg role="img" aria-label="{}: {}"').format(self.title, self.caption)
        return Markup(self.svg.replace("<svg", label, 1))


def figure(
    title: str, caption: str, svg: str | None, wide: bool = False, legend: Sequence[str] = ()
) -> list[Figure]:
    """One figure, or none where nothing is drawn."""
    return [] if svg is None else [Figure(title, caption, svg, wide, tuple(legend))]


def render(template: str, **context: Any) -> str:
    """A page; what the template names and the context lacks is an error."""
    text = _environment().get_template(template).render(style=_style(), **context)
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("forefed.report"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {
        "cell": cell,
        "cells": lambda rows: [(row.name, *row.values) for row in rows],
        "pipes": lambda text: text.replace("|", "\\|").replace("\n", " "),
        "sections": sections,
        "thirds": thirds,
        "unbroken": unbroken,
    }
    return found


def cell(text: str) -> str:
    """**x** is emphasised."""
    marked = re.fullmatch(r"\*\*(.*)\*\*", text)
    return Markup("<b>{}</b>").format(unbroken(marked[1])) if marked else unbroken(text)


def unbroken(text: str) -> str:
    """Keeps a number and its sign or unit on one line."""
    return text.replace(" %", "\u00a0%").replace("± ", "±\u00a0")


def sections(rows: Sequence[Row]) -> Sections:
    """Rows of one value by the first part of their dotted names; what has none comes first."""
    ordered = sorted(rows, key=lambda row: "." in row.name)
    found = []
    for title, members in groupby(ordered, lambda row: row.name.rpartition(".")[0].split(".")[0]):
        lines = [(row.name.removeprefix(f"{title}."), row.values[0]) for row in members]
        found.append((title or "general", lines))
    return found


def thirds(rows: Sequence[Row]) -> Sections:
    """Rows of one value in three columns of equal length."""
    length = max(1, -(-len(rows) // 3))
    lines = [(row.name, row.values[0]) for row in rows]
    return [("", lines[start : start + length]) for start in range(0, len(lines), length)]


@cache
def _style() -> Markup:
    sheet = files("forefed.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    return Markup(
        f":root {{ color-scheme: light dark; {palette.variables()} }}\n"
        "@media screen and (prefers-color-scheme: dark) "
        f"{{ :root {{ {palette.variables(dark=True)} }} svg image {{ filter: brightness(1.7); }} }}"
        f"\n{sheet}"
    )
