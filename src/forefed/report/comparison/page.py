"""The parts of a comparison as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from forefed.report import blocks, palette, words
from forefed.report.comparison.cells import Comparison
from forefed.report.comparison.parts import Part, Table
from forefed.report.document import document


def page(comparison: Comparison, title: str, parts: Sequence[Part]) -> str:
    """The whole page as text."""
    cells = words.plural(len(comparison.cells), "cell")
    facts = [cells, words.plural(len(comparison.methods), "method")]
    facts.append(words.plural(len(comparison.study["seeds"]), "seed"))
    head = (
        f'<header>\n<p class="kicker">{escape(" · ".join(facts))}</p>\n<h1>{escape(title)}</h1>\n'
        "</header>"
    )
    names = [palette.line_swatch(i) + escape(method) for i, method in enumerate(comparison.methods)]
    legend = blocks.legend(names)
    body = [head, *(blocks.section(escape(p.title), _content(p, legend)) for p in parts)]
    return document(title, "\n".join(body), f"Made by Forefed from the records of {cells}.")


def _content(part: Part, legend: str) -> str:
    pieces = [f"<p>{blocks.unbroken(escape(text))}</p>" for text in part.paragraphs]
    pieces += [_table(caption, table) for caption, table in part.tables]
    if part.figures:
        drawn = [blocks.figure(f.title, f.caption, f.svg, wide=f.wide) for f in part.figures]
        pieces.append(f'{legend}<div class="plots">\n' + "\n".join(drawn) + "\n</div>")
    return "\n".join(pieces)


def _table(caption: str, table: Table) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in table.heads)
    body = "".join(
        f"<tr><th>{escape(first)}</th>" + "".join(f"<td>{_cell(x)}</td>" for x in rest) + "</tr>"
        for first, *rest in table.rows
    )
    kind = "compared" if table.words else "compared numbers"
    shown = (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    if table.folded:
        return f"<details><summary>{escape(caption)}</summary>\n{shown}</details>"
    return (f"<h3>{escape(caption)}</h3>\n" if caption else "") + shown


def _cell(text: str) -> str:
    """**x** is emphasised."""
    marked = re.sub(r"^\*\*(.*)\*\*$", r"<b>\1</b>", escape(text))
    return blocks.unbroken(marked)
