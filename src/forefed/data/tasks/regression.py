"""A number of one text, or of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from forefed.core.errors import UserError
from forefed.data.columns import (
    AUTO,
    LABELS,
    PAIRS,
    TEXTS,
    cannot_tell,
    first_named,
    guess,
    named,
    texts,
)
from forefed.data.encoding import Texts
from forefed.data.examples import Indices
from forefed.data.rows import Rows
from forefed.data.tasks.task import Columns, Head, TextTask

CONVENTIONAL = (("score",), ("rating",), ("stars",), ("similarity",), ("value",), *LABELS)
"""Names of the column of numbers, the likeliest first."""
STRATA = 5


class Regression(TextTask):
    """One number per text, or per pair of texts: a rating, a similarity.

    What is learned runs from -2 to 2 over the ends of the scale, so that rates of learning that
    serve classes serve any scale (``models.objectives.regression``).
    """

    kind: Literal["regression"] = "regression"
    head: ClassVar[Head] = "regression"
    text: Columns = AUTO
    """A column, or several that are joined by newlines; "auto": guessed from names and types."""
    text1: str | None = None
    text2: str | None = None
    """The columns of a pair of texts, instead of text; guessed where none of the three is named."""
    label: str = AUTO
    """The column of numbers."""
    range: tuple[float, float] | None = None
    """The ends of the scale, for example [1, 5]; None: the smallest and the largest that occur."""

    @model_validator(mode="after")
    def _ends_in_order(self) -> Regression:
        ends = self.range
        if ends and not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
            raise ValueError("range: give the lower end first, for example [1, 5]")
        return self

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        if (self.text1 is None) != (self.text2 is None) or (self.text1 and self.text != AUTO):
            raise UserError("data.task: name text, or text1 and text2, and not some of both")
        where = "data.task.text"
        asked = [self.text] if isinstance(self.text, str) else self.text
        first = [] if self.text == AUTO else [named(rows, c, where) for c in asked]
        second: list[str] = []
        if self.text1 is not None and self.text2 is not None:
            first = [named(rows, self.text1, "data.task.text1")]
            second = [named(rows, self.text2, "data.task.text2")]
        if self.label != AUTO:
            label = [named(rows, self.label, "data.task.label")]
        else:
            free = [c for c in rows.column_names if c not in (*first, *second)]
            label = first_named(free, CONVENTIONAL) or []
            if not label:
                raise cannot_tell(rows, "data.task.label")
        pair = None if first else first_named(rows.column_names, PAIRS)
        if pair:
            first, second = pair[:1], pair[1:]
        return {"text": first or guess(rows, TEXTS, where, label), "text2": second, "label": label}

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        """Instead of classes: the ends of the scale."""
        column = columns["label"][0]
        values = [_numbers(place, rows, column) for place, rows in tables]
        low, high = self.range or (min(v.min() for v in values), max(v.max() for v in values))
        if np.ptp(values[0]) == 0:
            raise UserError(
                f"data.task.label: every training row has the number {values[0][0]:g} (column "
                f"'{column}'); there is nothing to learn, so name another column"
            )
        found = []
        for (place, rows), numbers in zip(tables, values, strict=True):
            outside = np.flatnonzero((numbers < low) | (numbers > high))
            if len(outside):
                raise UserError(
                    f"data.task.range: row {rows.number(outside[0])} of the {place} rows has "
                    f"{numbers[outside[0]]:g} in column '{column}', outside of {low:g} to {high:g}"
                )
            first = texts(rows, columns["text"])
            second = texts(rows, columns["text2"]) if columns["text2"] else None
            found.append(Texts(first, second, 4 * (numbers - low) / (high - low) - 2))
        return (repr(float(low)), repr(float(high))), found

    def labelled(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> list[Indices]:
        numbers = [map(number_of, rows.values(columns["label"][0])) for _, rows in tables]
        return [np.flatnonzero(~np.isnan(np.array(list(found)))) for found in numbers]

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns["text"], *([columns["text2"]] if columns["text2"] else [])]

    def strata(self, labels: Any) -> Indices:
        """Fifths of the examples, by their number."""
        inner = np.quantile(labels, np.arange(1, STRATA) / STRATA)
        return np.searchsorted(inner, labels, side="left").astype(np.int64)


def _numbers(place: str, rows: Rows, column: str) -> NDArray[np.float64]:
    found = np.array([number_of(value) for value in rows.values(column)], dtype=np.float64)
    missing = np.flatnonzero(np.isnan(found))
    if len(missing):
        more = f", and {len(missing) - 1:,} more have none" if len(missing) > 1 else ""
        raise UserError(
            f"data.task.label: row {rows.number(missing[0])} of the {place} rows has no number in "
            f"column '{column}' ({rows[column][missing[0]]!r}{more}); mend or remove the row, name "
            'another column, or set data.unlabelled = "drop"'
        )
    return found


def number_of(value: Any) -> float:
    """The finite number that a value is; NaN where it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan
