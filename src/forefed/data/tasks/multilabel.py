"""Any number of labels of one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from forefed.core.errors import UserError, nearest
from forefed.data.columns import AUTO, LABELS, TEXTS, cannot_tell, first_named, guess, named, texts
from forefed.data.encoding import Texts
from forefed.data.examples import Indices
from forefed.data.label_column import name_of
from forefed.data.rows import Rows
from forefed.data.tasks.task import ClassNames, Columns, Head, TextTask

SEPARATORS = (",", ";", "|")
CONVENTIONAL = (("labels",), ("tags",), ("topics",), ("categories",), ("genres",), *LABELS)
"""Names of the column of labels, the likeliest first."""


class MultiLabel(TextTask):
    """None, one or several labels per text, each of which is said or not."""

    kind: Literal["multilabel"] = "multilabel"
    head: ClassVar[Head] = "multilabel"
    text: Columns = AUTO
    """A column, or several that are joined by newlines; "auto": guessed from names and types."""
    label: str = AUTO
    """A column of lists of labels, or of labels in one text; nothing in it: no label applies."""
    separator: str = AUTO
    """What stands between the labels of one text; "auto": a comma, a semicolon or a bar, whichever
    most rows have. Blanks around a label do not count."""
    labels: ClassNames | None = None
    """The labels in the order of the logits; None: all that occur, sorted."""

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        where = "data.task.text"
        asked = [self.text] if isinstance(self.text, str) else self.text
        text = [] if self.text == AUTO else [named(rows, c, where) for c in asked]
        if self.label != AUTO:
            label = [named(rows, self.label, "data.task.label")]
        else:
            free = [c for c in rows.column_names if c not in text]
            label = first_named(free, CONVENTIONAL) or []
            if not label:
                raise cannot_tell(rows, "data.task.label")
        return {"text": text or guess(rows, TEXTS, where, label), "label": label}

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        column = columns["label"][0]
        mark = separator_of(tables[0][1], column) if self.separator == AUTO else self.separator
        held = [(place, lists_of(place, rows, column, mark)) for place, rows in tables]
        known = self.labels or sorted({x for _, lists in held for one in lists for x in one})
        if not any(labels for labels in held[0][1]):
            raise UserError(
                f"data.task.label: no training row has a label in column '{column}'; name another"
            )
        place_of = {name: i for i, name in enumerate(known)}
        found = []
        for (place, lists), (_, rows) in zip(held, tables, strict=True):
            marks_NC = np.zeros((len(lists), len(known)), dtype=np.int64)
            for i, labels in enumerate(lists):
                bad = next((x for x in labels if x not in place_of), None)
                if bad is not None:
                    raise UserError(
                        f"data.task.label: '{bad}' in row {rows.number(i)} of the {place} rows is "
                        f"none of the labels: {nearest(bad, place_of)}"
                    )
                marks_NC[i, [place_of[x] for x in labels]] = 1
            found.append(Texts(texts(rows, columns["text"]), None, marks_NC))
        return tuple(known), found

    def strata(self, labels: Any) -> Indices:
        """The first label of each example; one number more where it has none."""
        first: Indices = np.where(labels.any(1), labels.argmax(1), labels.shape[1])
        return first


def lists_of(place: str, rows: Rows, column: str, separator: str) -> list[list[str]]:
    """The labels of each row.

    Raises:
        UserError: a value that is neither a list nor a text.
    """
    found = []
    for i, value in enumerate(rows.values(column)):
        parts = value.split(separator) if isinstance(value, str) else value or []
        if not isinstance(parts, list) or any(isinstance(x, dict | list) for x in parts):
            raise UserError(
                f"data.task.label: row {rows.number(i)} of the {place} rows has no list of "
                f"labels in column '{column}' ({value!r}); give a list, or texts with "
                f"'{separator}' between labels"
            )
        found.append([name for x in parts if (name := name_of(x)) is not None])
    return found


def separator_of(rows: Rows, column: str) -> str:
    """What stands between labels in most of these rows, of the usual separators."""
    if not rows.is_text(column):
        return SEPARATORS[0]
    texts = [value or "" for value in rows.values(column)]
    return max(SEPARATORS, key=lambda mark: sum(mark in text for text in texts))
