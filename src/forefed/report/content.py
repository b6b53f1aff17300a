"""What pages and terminal show: sections of sentences, tables and figures.

A table is the same everywhere; ``templates/macros.html.j2`` makes HTML of it, ``terminal`` what
rich prints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True)
class Table:
    """Texts: one head per column, the first column names the row.

    ``folded``: the line behind which it is shown on request; empty: at once. ``bold``: (row,
    column) of the cells that stand out.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and stand at the right."""
        columns = zip(*self.rows, strict=True)
        return [all(re.match(r"(?:[-+]?\d|–$).{,40}$", x) for x in column) for column in columns]


@dataclass(frozen=True)
class Figure:
    """A picture as SVG text. ``alt``: what it shows, in words; ``table``: its numbers; ``legend``:
    (number of the series or None, text), drawn as ``lines`` or as squares."""

    title: str
    caption: str
    svg: str
    alt: str = ""
    wide: bool = False
    table: Table | None = None
    legend: Sequence[tuple[int | None, str]] = ()
    lines: bool = False

    @property
    def drawing(self) -> Markup:
        said = f"{self.title}: {self.alt or self.caption}"
        return Markup(
            self.svg.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(said), 1)
        )


@dataclass(frozen=True)
class Section:
    """A question or a view, with what answers it."""

    title: str
    texts: Sequence[str] = ()
    figures: Sequence[Figure | None] = ()
    tables: Sequence[Table] = ()
    more: Sequence[Figure | None] = field(default=())
    """Figures that are shown on request."""

    @property
    def empty(self) -> bool:
        return not (self.texts or any(self.figures) or self.tables or any(self.more))


def terminal(table: Table, turned: bool = False) -> rich.table.Table:
    """For a terminal; ``turned``: a column per row, as terminals are narrow."""
    from rich.table import Table as Rich
    from rich.text import Text

    lines = [table.heads, *table.rows]
    cells = [
        [Text(cell, "bold" if (r, c) in table.bold else "") for c, cell in enumerate(line)]
        for r, line in enumerate(lines, -1)
    ]
    numeric = table.numeric
    if turned:
        cells = [list(column) for column in zip(*cells, strict=True)]
        numeric = [False] + [True] * len(table.rows)
    found = Rich(box=None, pad_edge=False, header_style="bold", title=Text(table.caption) or None)
    found.title_justify, found.title_style, found.min_width = "left", "", 60  # a title folds
    for head, right in zip(cells[0], numeric or [False] * len(cells[0]), strict=True):
        found.add_column(head, justify="right" if right else "left")
    for line in cells[1:]:
        line[0].stylize("dim")
        found.add_row(*line)
    return found
