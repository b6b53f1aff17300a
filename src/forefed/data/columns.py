"""Finds the columns that a task reads, and turns a label column into class ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets

AUTO = "auto"
TEXTS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("title", "description"),
    ("title", "content"),
    ("title", "body"),
    ("sentence",),
    ("content",),
    ("document",),
    ("body",),
    ("message",),
    ("review",),
    ("comment",),
    ("tweet",),
    ("utterance",),
    ("question",),
    ("story",),
    ("description",),
    ("title",),
)
PAIRS: tuple[tuple[str, ...], ...] = (
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "document"),
)
LABELS = (
    ("label",),
    ("labels",),
    ("class",),
    ("class index",),
    ("category",),
    ("target",),
    ("sentiment",),
    ("topic",),
    ("intent",),
    ("y",),
)


def named(rows: datasets.Dataset, column: str, where: str) -> str:
    """``column`` itself; raises UserError if the rows have none of this name."""
    if column not in rows.column_names:
        raise UserError(
            f"{where}: there is no column '{column}': {nearest(column, rows.column_names)}"
        )
    return column


def guess(
    rows: datasets.Dataset,
    conventional: Sequence[tuple[str, ...]],
    where: str,
    taken: Sequence[str],
) -> list[str]:
    """The first conventional set of column names that the rows have; else the only columns of text.

    Args:
        taken: columns that already have a purpose.

    Raises:
        UserError: no or several answers; names all columns.
    """
    free = [c for c in rows.column_names if c not in taken]
    found = first_named(free, conventional)
    if found is None:
        found = [c for c in free if _is_text(rows, c)]
        if len(found) != len(conventional[0]):
            raise cannot_tell(rows, where)
    return found


def guess_label(rows: datasets.Dataset, where: str, taken: Sequence[str]) -> str:
    """The column of class labels: by its type (a ``datasets.ClassLabel``), else by its name.

    Raises:
        UserError: no or several answers; names all columns.
    """
    free = [c for c in rows.column_names if c not in taken]
    typed = [c for c in free if hasattr(rows.features[c], "names")]
    found = typed if len(typed) == 1 else first_named(free, LABELS)
    if found is None:
        raise cannot_tell(rows, where)
    return found[0]


def first_named(
    columns: Sequence[str], conventional: Sequence[tuple[str, ...]]
) -> list[str] | None:
    """The first of these sets of names that are all there, whatever their case."""
    by_name = {c.lower(): c for c in columns}
    for names in conventional:
        if all(name in by_name for name in names):
            return [by_name[name] for name in names]
    return None


def cannot_tell(rows: datasets.Dataset, where: str) -> UserError:
    """The error of a column that must be named."""
    columns = ", ".join(rows.column_names)
    return UserError(
        f"{where}: cannot tell which column is meant; name it. Columns here: {columns}"
    )


def texts(rows: datasets.Dataset, columns: Sequence[str]) -> list[str]:
    """One text per row: the columns' values joined by a newline; a missing value is empty text.

    Raises:
        UserError: a column of lists or tables.
    """
    parts = []
    for column in columns:
        values = rows[column][:]
        bad = next((i for i, v in enumerate(values) if isinstance(v, list | dict)), None)
        if bad is not None:
            raise UserError(f"data.task: column '{column}' holds no text (row {bad + 1})")
        parts.append(["" if v is None else str(v) for v in values])
    return ["\n".join(row) for row in zip(*parts, strict=True)]


def class_ids(
    tables: Sequence[tuple[str, datasets.Dataset]], column: str, names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Class names, and the class [N] of every row of each table.

    Names are those given; else a ``ClassLabel``'s own, in its order; else all that occur, in sorted
    order (numbers by value). Names given for a column of integers name the classes 0, 1, ...

    Args:
        tables: (what a message calls it, rows).

    Raises:
        UserError: a missing label, one that is not in ``names``, or rows of a single class.
    """
    values = [(place, _names_of(place, rows, column)) for place, rows in tables]
    typed = getattr(tables[0][1].features[column], "names", None)
    if names is not None:
        known = list(names)
        numerals = all(v.isdigit() for _, column_values in values for v in column_values)
        if typed is None and numerals and not any(name.isdigit() for name in known):
            index = {str(i): i for i in range(len(known))}
        else:
            index = {name: i for i, name in enumerate(known)}
    else:
        occurring = {v for _, column_values in values for v in column_values}
        known = list(typed) if typed else sorted(occurring, key=_by_value)
        index = {name: i for i, name in enumerate(known)}
    ids = []
    for place, column_values in values:
        bad = next((i for i, v in enumerate(column_values) if v not in index), None)
        if bad is not None:
            raise UserError(
                f"data.task.label: '{column_values[bad]}' in row {bad + 1} of the {place} rows is "
                f"none of the labels: {nearest(column_values[bad], index)}"
            )
        ids.append(np.array([index[v] for v in column_values], dtype=np.int64))
    if len(np.unique(ids[0])) < 2:
        raise UserError(
            f"data.task.label: every training row has the label '{values[0][1][0]}' (column "
            f"'{column}'); a classifier needs two classes at least"
        )
    return tuple(known), ids


def _names_of(place: str, rows: datasets.Dataset, column: str) -> list[str]:
    typed = getattr(rows.features[column], "names", None)
    found = []
    for i, value in enumerate(rows[column][:]):
        if typed is not None and value is not None and 0 <= value < len(typed):
            found.append(str(typed[value]))
            continue
        name = None if typed is not None else _name(value)
        if name is None:
            raise UserError(
                f"data.task.label: row {i + 1} of the {place} rows has no class in column "
                f"'{column}' ({value!r}); mend or remove the row, or name another column or split"
            )
        found.append(name)
    return found


def _name(value: Any) -> str | None:
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value.is_integer() else None
    if isinstance(value, str | int):
        return str(value) or None
    return None


def _by_value(name: str) -> tuple[int, float, str]:
    try:
        return 0, int(name), name
    except ValueError:
        return 1, 0, name


def _is_text(rows: datasets.Dataset, column: str) -> bool:
    return str(getattr(rows.features[column], "dtype", None)) in ("string", "large_string")
