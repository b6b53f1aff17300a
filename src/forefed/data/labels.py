"""Turns a label column into class ids, and refuses what is no column of classes.

Names are normalised by value, so that every format and every spelling of a number means the same
class: 1, 1.0, "1", "1.0" and " 1 " are "1". Blanks around a name do not count. No class is given
by a missing value, an empty text, NaN, infinity, "nan", "null" and "<NA>", and by -1 where other
numbers count classes from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import UserError, nearest
from forefed.data.examples import Indices
from forefed.data.label_checks import (
    refuse_ids,
    refuse_joined,
    refuse_missing,
    refuse_near_duplicates,
    refuse_scores,
    refuse_untrained,
    without_minus_one,
)
from forefed.data.label_column import (
    INTEGRAL,
    WHERE,
    Labels,
    all_occurring,
    fold,
    listed,
    read_labels,
    shown,
)
from forefed.data.rows import Rows

MANY, FEW_EACH = 50, 10
"""More classes than this, with fewer rows each, are pointed out."""


@dataclass(frozen=True)
class Classes:
    """Class names, the class [N] of every row of each table, and notes for the user."""

    names: tuple[str, ...]
    ids: list[NDArray[np.int64]]
    notes: tuple[str, ...] = ()


def class_ids(
    tables: Sequence[tuple[str, Rows]], column: str, names: Sequence[str] | None
) -> Classes:
    """The classes of these tables' rows.

    Names are those given; else a ``ClassLabel``'s own, in its order; else all that occur, in sorted
    order (numbers by value). Names given for a column of integers name the classes 0, 1, ..., or 1,
    2, ... where the largest is their number and there is no 0.

    Args:
        tables: (what a message calls it, rows); the first one is trained on.

    Raises:
        UserError: a missing label, one that is not in ``names``, rows of a single class, or a
            column that holds scores, several labels at once, ids, or one class in two spellings.
    """
    typed = tables[0][1].classes.get(column)
    found = [read_labels(place, rows, column) for place, rows in tables]
    if typed is None and names is None:
        found = [without_minus_one(labels, found, refuse=True) for labels in found]
    for labels in found:
        refuse_missing(labels, column)
    notes: list[str] = []
    if names is not None:
        index, notes = _index_of(names, found, typed is None)
        known = list(names)
    elif typed is not None:
        known = list(typed)
        index = {name: i for i, name in enumerate(known)}
    else:
        occurring = all_occurring(found)
        refuse_scores(found, column)
        refuse_joined(found, column, occurring)
        refuse_ids(found[0], column)
        refuse_near_duplicates(occurring)
        known = sorted(occurring, key=_by_value)
        index = {name: i for i, name in enumerate(known)}
        refuse_untrained(found)
    ids = [_ids(labels, index) for labels in found]
    if len(np.unique(ids[0])) < 2:
        raise UserError(
            f"{WHERE}: every training row has the label '{shown(known[ids[0][0]])}' (column "
            f"'{column}'); a classifier needs two classes at least"
        )
    return Classes(tuple(known), ids, tuple(notes))


def labelled(
    tables: Sequence[tuple[str, Rows]], column: str, names: Sequence[str] | None
) -> list[Indices]:
    """The rows of each table that have a class."""
    found = [read_labels(place, rows, column) for place, rows in tables]
    if names is None and tables[0][1].classes.get(column) is None:
        found = [without_minus_one(labels, found, refuse=False) for labels in found]
    return [
        np.flatnonzero(np.array([n is not None for n in x.names], dtype=bool)[x.codes])
        for x in found
    ]


def class_notes(
    names: Sequence[str], train: NDArray[np.int64], test: NDArray[np.int64]
) -> list[str]:
    """What a user should know of classes that can be learned: too few rows of some of them."""
    notes = []
    counts = np.bincount(train, minlength=len(names))
    missing = [c for c in np.unique(test).tolist() if not counts[c]]
    if missing:
        rows = int(np.isin(test, missing).sum())
        which = listed([names[c] for c in missing])
        notes.append(f"{rows:,} test rows are of classes that no training row has: {which}")
    if len(names) > MANY and len(train) < FEW_EACH * len(names):
        notes.append(
            f"{len(names):,} classes for {len(train):,} training rows: too few of each to learn; "
            f"is {WHERE} the right column?"
        )
    return notes


def _ids(labels: Labels, index: dict[str, int]) -> NDArray[np.int64]:
    names = [str(name) for name in labels.names]
    unknown = [name for name in names if name not in index]
    if unknown:
        name = min(unknown, key=labels.first)
        raise UserError(
            f"{WHERE}: '{shown(name)}' in row {labels.first(name)} of the {labels.place} rows is "
            f"none of the labels: {nearest(name, index)}"
        )
    return np.array([index[name] for name in names], dtype=np.int64)[labels.codes]


def _index_of(
    names: Sequence[str], found: Sequence[Labels], by_number: bool
) -> tuple[dict[str, int], list[str]]:
    """The class of every name that occurs, by the names given; and a note."""
    occurring = all_occurring(found)
    numerals = all(v.isdigit() for v in occurring)
    if by_number and occurring and numerals and not any(name.isdigit() for name in names):
        numbers = {int(v) for v in occurring}
        start = int(0 not in numbers and max(numbers) == len(names))
        first = f"{names[0]!r} is {start}, {names[-1]!r} is {start + len(names) - 1}"
        note = [f"label numbers start at 1: {first}"] if start else []
        return {str(i + start): i for i in range(len(names))}, note
    index = {name: i for i, name in enumerate(names)}
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(fold(name), []).append(name)
    for name in occurring:
        close = folded.get(fold(name), [])
        if name not in index and len(close) == 1:
            index[name] = index[close[0]]
    return index, []


def _by_value(name: str) -> tuple[int, float, str]:
    return (0, int(name), name) if INTEGRAL.fullmatch(name) else (1, 0, name)
