"""The parts of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from forefed.report.comparison.parts import Part, Table


def markdown(title: str, parts: Sequence[Part]) -> str:
    """One document; figures are left out."""
    lines = [f"# {title}", ""]
    for part in (p for p in parts if p.tables):
        lines += [f"## {part.title}", ""]
        for paragraph in part.paragraphs:
            lines += [paragraph, ""]
        for caption, table in part.tables:
            if table.folded:
                lines += [f"<details><summary>{caption}</summary>", ""]
            elif caption:
                lines += [f"**{caption}**", ""]
            lines += [*table_lines(table), ""]
            if table.folded:
                lines += ["</details>", ""]
    return "\n".join(lines)


def table_lines(table: Table) -> list[str]:
    """Columns of numbers are set right."""
    rule = ["---", *("---" if table.words else "--:" for _ in table.heads[1:])]
    rows = [table.heads, rule, *table.rows]
    return ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
