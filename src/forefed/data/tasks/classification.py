"""One class of one text, or of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.core.errors import UserError
from forefed.data.columns import (
    AUTO,
    PAIRS,
    TEXTS,
    check_texts,
    guess,
    guess_label,
    named,
    texts,
)
from forefed.data.encoding import Texts
from forefed.data.examples import Indices
from forefed.data.labels import class_ids, labelled
from forefed.data.rows import Rows
from forefed.data.tasks.task import ClassNames, Columns, Head, TextTask


class Classification(TextTask):
    """One class per text."""

    kind: Literal["classification"] = "classification"
    head: ClassVar[Head] = "classification"
    text: Columns = AUTO
    """A column, or several that are joined by newlines; "auto": guessed from names and types."""
    label: str = AUTO
    labels: ClassNames | None = None
    """The classes in the order of the logits; None: all that occur, sorted. For a label column of
    integers these are the names of 0, 1, ..."""

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        where = "data.task.text"
        asked = [self.text] if isinstance(self.text, str) else self.text
        text = [] if self.text == AUTO else [named(rows, c, where) for c in asked]
        label = label_column(rows, self.label, text)
        return {"text": text or guess(rows, TEXTS, where, [label]), "label": [label]}

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        found = class_ids(tables, columns["label"][0], self.labels)
        first = [texts(rows, columns["text"]) for _, rows in tables]
        notes = found.notes
        if len(columns["text"]) == 1:
            notes += check_texts(first[0], columns["text"][0], self.text != AUTO)
        both = zip(first, found.ids, strict=True)
        return found.names, [Texts(a, None, y, notes) for a, y in both]

    def labelled(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> list[Indices]:
        return labelled(tables, columns["label"][0], self.labels)


class Pairs(TextTask):
    """One class per pair of texts (entailment, paraphrase)."""

    kind: Literal["pairs"] = "pairs"
    head: ClassVar[Head] = "classification"
    text1: str = AUTO
    text2: str = AUTO
    label: str = AUTO
    labels: ClassNames | None = None
    """As for ``classification``."""

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        if (self.text1 == AUTO) != (self.text2 == AUTO):
            raise UserError("data.task: name both text1 and text2, or neither")
        pair: list[str] = []
        if self.text1 != AUTO:
            pair = [
                named(rows, self.text1, "data.task.text1"),
                named(rows, self.text2, "data.task.text2"),
            ]
        label = label_column(rows, self.label, pair)
        pair = pair or guess(rows, PAIRS, "data.task.text1 and text2", [label])
        return {"text1": pair[:1], "text2": pair[1:], "label": [label]}

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        found = class_ids(tables, columns["label"][0], self.labels)
        pairs = [[texts(rows, columns[s]) for s in ("text1", "text2")] for _, rows in tables]
        notes = found.notes
        for setting, text in zip(("text1", "text2"), pairs[0], strict=True):
            notes += check_texts(text, columns[setting][0], self.text1 != AUTO, setting)
        both = zip(pairs, found.ids, strict=True)
        return found.names, [Texts(a, b, y, notes) for (a, b), y in both]

    def labelled(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> list[Indices]:
        return labelled(tables, columns["label"][0], self.labels)

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns["text1"], columns["text2"]]


def label_column(rows: Rows, asked: str, taken: Sequence[str]) -> str:
    where = "data.task.label"
    return guess_label(rows, where, taken) if asked == AUTO else named(rows, asked, where)
