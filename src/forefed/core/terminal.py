"""What is printed on a terminal: nothing of a user's is ever markup.

Texts, labels, names and paths may hold anything, ``[/red]`` and control characters too. Every
console of the package is made here and takes a string as it is; what is to look different says so
with ``styled``.
"""

from __future__ import annotations

import re

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def console(stderr: bool = False) -> Console:
    """A console that prints strings as they are: no markup, no emoji codes, no colouring."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Parts one after the other, each a string or a (string, style)."""
    return Text.assemble(*parts)


def column(fields: str) -> TextColumn:
    """A column of a progress bar that shows fields of its task ("{task.description}") as they
    are."""
    return TextColumn(fields, markup=False)


def bars(on: Console, *more: TextColumn) -> Progress:
    """Bars of what is done and how long the rest takes; ``more``: columns behind these."""
    return Progress(
        column("{task.description}"),
        BarColumn(bar_width=24),
        column("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
        console=on,
    )


def printable(text: str) -> str:
    """Text as a terminal may show it: what would move the cursor, change colours or the direction
    of writing is shown by its code, and everything can be encoded."""
    text = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str, length: int | None = None) -> str:
    """The same on one line, and cut where it is longer than ``length`` characters."""
    text = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    return text if length is None or len(text) <= length else text[: max(0, length - 1)] + "…"
