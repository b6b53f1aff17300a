"""Pieces of the page: sections, cards, figures, legends and tables of rows.

Arguments are plain text and are escaped here, except what is named ``svg``, ``content``, ``legend``
or ``items``, which is HTML already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from forefed.report.tables import Row


def section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def card(name: str, value: str, detail: str) -> str:
    return (
        f'<div class="card"><h3>{escape(name)}</h3><b>{escape(value)}</b>'
        f"<small>{escape(detail)}</small></div>"
    )


def figure(title: str, caption: str, svg: str | None, wide: bool = False, legend: str = "") -> str:
    if svg is None:
        return ""
    label = escape(f"{title}: {caption}", quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    kind = ' class="wide"' if wide else ""
    return (
        f"<figure{kind}><figcaption><b>{escape(title)}</b>{escape(caption)}</figcaption>\n"
        f"{legend}{svg}</figure>"
    )


def legend(items: Sequence[str]) -> str:
    return '<ul class="legend">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>\n"


def folded(rows: Sequence[Row], names: Sequence[str], common: str) -> str:
    """For one run everything, by section; for several what differs, the rest folded away."""
    if len(names) == 1:
        return _facts(rows)
    differing = [row for row in rows if row.differs]
    same = [row for row in rows if not row.differs]
    shown = table(differing, names) if differing else '<p class="quiet">No differences.</p>'
    return f"{shown}\n<details><summary>{len(same):,} {common}</summary>\n{_facts(same)}</details>"


def _facts(rows: Sequence[Row]) -> str:
    """Rows with one value each, in columns, one block per section of the dotted names."""
    ordered = sorted(rows, key=lambda row: "." in row.name)  # what has no section comes first
    blocks = []
    for section, members in groupby(ordered, lambda row: row.name.rpartition(".")[0].split(".")[0]):
        lines = _lines(members, f"{section}.")
        blocks.append(f"<section><h3>{escape(section or 'general')}</h3>{lines}</section>")
    return '<div class="facts">' + "\n".join(blocks) + "</div>"


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """One row per name and one column per run; a single run's values flow in columns."""
    if len(names) == 1:
        return columns(rows)
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{escape(row.name)}</th>"
        + "".join(f"<td>{escape(value)}</td>" for value in row.values)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def columns(rows: Sequence[Row]) -> str:
    """Rows with one value each, in three columns of equal length."""
    length = -(-len(rows) // 3)
    parts = (rows[start : start + length] for start in range(0, len(rows), max(length, 1)))
    blocks = "".join(f"<section>{_lines(part)}</section>" for part in parts)
    return f'<div class="facts">{blocks}</div>'


def _lines(rows: Iterable[Row], prefix: str = "") -> str:
    lines = "".join(
        f"<tr><th>{escape(row.name.removeprefix(prefix))}</th><td>{escape(row.values[0])}</td></tr>"
        for row in rows
    )
    return f"<table>{lines}</table>"


def unbroken(text: str) -> str:
    """Keeps a number and its sign or unit on one line."""
    return text.replace(" %", "\u00a0%").replace("± ", "±\u00a0")
