"""Turns a label column into class ids, and refuses what is no column of classes.

Names are normalised by value, so that every format and every spelling of a number means the same
class: 1, 1.0, "1", "1.0" and " 1 " are "1". Blanks around a name do not count. No class is given
by a missing value, an empty text, NaN, infinity, "nan", "null" and "<NA>", and by -1 where other
numbers count classes from 0.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import UserError, nearest
from forefed.data.examples import Indices
from forefed.data.rows import Rows

WHERE = "data.task.label"
_MISSING = ("", "nan", "null", "<na>")
_INTEGRAL = re.compile(r"([+-]?)(0|[1-9][0-9]{0,17})(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SEPARATORS = (",", ";", "|")
FEWEST_IDS = 5
"""Rows from which on "as many classes as rows" tells ids."""
MANY, FEW_EACH = 50, 10
"""More classes than this, with fewer rows each, are pointed out."""


LabelKind = Literal["classes", "scores", "several", "ids"]


@dataclass(frozen=True)
class Classes:
    """Class names, the class [N] of every row of each table, and notes for the user."""

    names: tuple[str, ...]
    ids: list[NDArray[np.int64]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """One table's labels: ``codes`` [N] point into the different values; ``names`` are theirs, None
    where a value is none. ``number``: what a message calls a row, by its position."""

    place: str
    codes: NDArray[np.int64]
    values: list[Any]
    names: list[str | None]
    number: Callable[[int], int]

    def occurring(self) -> dict[str, int]:
        """Rows by class name."""
        counts = np.bincount(self.codes, minlength=len(self.names))
        found: dict[str, int] = {}
        for name, n in zip(self.names, counts.tolist(), strict=True):
            if name is not None and n:
                found[name] = found.get(name, 0) + n
        return found

    def first(self, name: str | None) -> int:
        """The number of the first row with this name, in the source, from 1."""
        codes = [c for c, n in enumerate(self.names) if n == name]
        return self.number(int(np.flatnonzero(np.isin(self.codes, codes))[0]))


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
        found = [_without_minus_one(labels, found, refuse=True) for labels in found]
    for labels in found:
        _refuse_missing(labels, column)
    notes: list[str] = []
    if names is not None:
        index, notes = _index_of(names, found, typed is None)
        known = list(names)
    elif typed is not None:
        known = list(typed)
        index = {name: i for i, name in enumerate(known)}
    else:
        occurring = _all_occurring(found)
        _refuse_scores(found, column)
        _refuse_joined(found, column, occurring)
        _refuse_ids(found[0], column)
        _refuse_near_duplicates(occurring)
        known = sorted(occurring, key=_by_value)
        index = {name: i for i, name in enumerate(known)}
        _refuse_untrained(found)
    ids = [_ids(labels, index) for labels in found]
    if len(np.unique(ids[0])) < 2:
        raise UserError(
            f"{WHERE}: every training row has the label '{shown(known[ids[0][0]])}' (column "
            f"'{column}'); a classifier needs two classes at least"
        )
    return Classes(tuple(known), ids, tuple(notes))


def kind_of(occurring: Mapping[str, int]) -> LabelKind:
    """What names with these numbers of rows are, as far as they tell."""
    if _broken_numbers(occurring):
        return "scores"
    if _joined_names(occurring):
        return "several"
    return "ids" if _are_ids(occurring) else "classes"


def labelled(
    tables: Sequence[tuple[str, Rows]], column: str, names: Sequence[str] | None
) -> list[Indices]:
    """The rows of each table that have a class."""
    found = [read_labels(place, rows, column) for place, rows in tables]
    if names is None and tables[0][1].classes.get(column) is None:
        found = [_without_minus_one(labels, found, refuse=False) for labels in found]
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
        listed = _listed([names[c] for c in missing])
        notes.append(f"{rows:,} test rows are of classes that no training row has: {listed}")
    if len(names) > MANY and len(train) < FEW_EACH * len(names):
        notes.append(
            f"{len(names):,} classes for {len(train):,} training rows: too few of each to learn; "
            f"is {WHERE} the right column?"
        )
    return notes


def read_labels(place: str, rows: Rows, column: str) -> Labels:
    """The labels of one table.

    Raises:
        UserError: a column of lists, objects or bytes.
    """
    codes, values = coded(rows, column, WHERE)
    typed = rows.classes.get(column)
    if typed is None:
        return Labels(place, codes, values, [name_of(v) for v in values], rows.number)
    inside = [v if isinstance(v, int) and 0 <= v < len(typed) else None for v in values]
    names = [None if v is None else typed[v] for v in inside]
    return Labels(place, codes, values, names, rows.number)


def coded(rows: Rows, column: str, where: str) -> tuple[NDArray[np.int64], list[Any]]:
    """The different values of a column, and which of them each row has, [N]."""
    import pyarrow
    import pyarrow.compute as pc
    import pyarrow.types as types

    array = rows.array(column)
    kind = array.type.value_type if types.is_dictionary(array.type) else array.type
    if types.is_list(kind) or types.is_large_list(kind):
        raise UserError(
            f"{where}: column '{column}' holds lists; for texts with several labels set data.task "
            '= "multilabel"'
        )
    if types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        raise UserError(f"{where}: column '{column}' holds {kind}, which are no classes")
    found = pc.dictionary_encode(
        array if array.type == kind else array.cast(kind),
        null_encoding="encode",
        memory_pool=pyarrow.system_memory_pool(),  # the default one keeps what is given back
    ).chunks
    codes = np.concatenate([np.zeros(0, np.int64), *(_indices(chunk) for chunk in found)])
    # pyarrow gives every chunk the values of all
    return codes, found[-1].dictionary.to_pylist() if found else []


def _indices(chunk: Any) -> NDArray[np.int32]:
    """The indices of a dictionary array that has no nulls, in its own memory."""
    indices = chunk.indices
    if not len(indices):
        return np.zeros(0, np.int32)
    return np.frombuffer(indices.buffers()[1], np.int32)[indices.offset :][: len(indices)]


def name_of(value: Any) -> str | None:
    """The name that a value is; None: no value is given."""
    if value is None:
        return None
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            return None
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else str(value)
    text = str(value).strip()
    if text.casefold() in _MISSING:
        return None
    if whole := _INTEGRAL.fullmatch(text):
        return str(int(whole[1] + whole[2]))
    return text


def shown(name: str) -> str:
    """A name of any length, for a message."""
    return name if len(name) <= 60 else name[:57] + "..."


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
    occurring = _all_occurring(found)
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
        folded.setdefault(_fold(name), []).append(name)
    for name in occurring:
        close = folded.get(_fold(name), [])
        if name not in index and len(close) == 1:
            index[name] = index[close[0]]
    return index, []


def _all_occurring(found: Sequence[Labels]) -> dict[str, int]:
    occurring: dict[str, int] = {}
    for labels in found:
        for name, n in labels.occurring().items():
            occurring[name] = occurring.get(name, 0) + n
    return occurring


def _without_minus_one(labels: Labels, found: Sequence[Labels], refuse: bool) -> Labels:
    """-1 is no class beside three or more classes 0, 1, ..., or where it stands in test rows only;
    with -1 and 1 (and 0) it is one."""
    trained = set(found[0].occurring())
    numbers = {int(v) for v in _all_occurring(found) if _INTEGRAL.fullmatch(v)}
    a_class = "-1" in trained and numbers <= {-1, 0, 1}
    if "-1" not in labels.names or a_class or len(numbers) != len(_all_occurring(found)):
        return labels
    if min(numbers - {-1}, default=-1) < 0:
        return labels
    if refuse:
        raise UserError(
            f"{WHERE}: -1 in row {labels.first('-1')} of the {labels.place} rows usually means "
            'that no class is given; set data.unlabelled = "drop", or list the classes in '
            "data.task.labels"
        )
    names = [None if name == "-1" else name for name in labels.names]
    return replace(labels, names=names)


def _refuse_missing(labels: Labels, column: str) -> None:
    used = set(labels.codes.tolist())
    missing = [c for c, name in enumerate(labels.names) if name is None and c in used]
    if not missing:
        return
    rows = np.flatnonzero(np.isin(labels.codes, missing))
    value = labels.values[labels.codes[rows[0]]]
    more = f", and {len(rows) - 1:,} more have none" if len(rows) > 1 else ""
    raise UserError(
        f"{WHERE}: row {labels.number(int(rows[0]))} of the {labels.place} rows has no class in "
        f"column '{column}' ({value!r}{more}); mend or remove the row, name another column or "
        'split, or set data.unlabelled = "drop"'
    )


def _refuse_scores(found: Sequence[Labels], column: str) -> None:
    broken = _broken_numbers(_all_occurring(found))
    if not broken:
        return
    labels = next(x for x in found if broken[0] in x.names)
    raise UserError(
        f"{WHERE}: column '{column}' holds scores, not classes ({broken[0]} in row "
        f'{labels.first(broken[0])} of the {labels.place} rows): set data.task = "regression", '
        "or list them in data.task.labels to learn them as classes"
    )


def _refuse_joined(found: Sequence[Labels], column: str, occurring: dict[str, int]) -> None:
    joined = _joined_names(occurring)
    if joined:
        raise UserError(
            f"{WHERE}: column '{column}' seems to hold several labels at once "
            f"('{shown(joined[0])}'): set data.task = \"multilabel\", or list the classes in "
            "data.task.labels to learn each combination as one"
        )


def _refuse_ids(labels: Labels, column: str) -> None:
    occurring = labels.occurring()
    single = sum(n == 1 for n in occurring.values())
    rows, classes = len(labels.codes), len(occurring)
    if _are_ids(occurring):
        what = (
            f"as many classes as rows ({rows:,})"
            if classes == rows
            else f"{classes:,} classes in {rows:,} rows, {single:,} of them in a single row"
        )
        raise UserError(
            f"{WHERE}: column '{column}' has {what}, which is an id or a text rather than a class; "
            "name another column, or list the classes in data.task.labels"
        )


def _broken_numbers(names: Iterable[str]) -> list[str]:
    """Those that are no integers, where all are numbers."""
    names = list(names)
    broken = [name for name in names if not name.lstrip("+-").isdecimal()]
    return broken if all(_NUMBER.fullmatch(name) for name in names) else []


def _joined_names(occurring: Iterable[str]) -> list[str]:
    """The names that are made of others: every part stands alone or in two of them."""
    names = set(occurring)
    for separator in _SEPARATORS:
        joined = {n: {p.strip() for p in n.split(separator)} for n in names if separator in n}
        parts = Counter(p for each in joined.values() for p in each if p)
        if joined and all(p in names or n > 1 for p, n in parts.items()):
            return sorted(joined)
    return []


def _are_ids(occurring: Mapping[str, int]) -> bool:
    """As many classes as rows, or most classes in a single row."""
    classes, single = len(occurring), sum(n == 1 for n in occurring.values())
    if classes >= FEWEST_IDS and single == classes:
        return True
    return classes >= 10 and 2 * single > classes


def _refuse_near_duplicates(occurring: dict[str, int]) -> None:
    folded: dict[str, list[str]] = {}
    for name in occurring:
        folded.setdefault(_fold(name), []).append(name)
    double = [sorted(names) for names in folded.values() if len(names) > 1]
    if double:
        listed = "; ".join(
            " and ".join(f"'{shown(n)}' ({occurring[n]:,} rows)" for n in names)
            for names in double[:3]
        )
        raise UserError(
            f"{WHERE}: one class in two spellings? {listed}. Write them alike, or list the classes "
            "in data.task.labels (then case does not matter)"
        )


def _refuse_untrained(found: Sequence[Labels]) -> None:
    trained = found[0].occurring()
    for labels in found[1:]:
        alone = {n: rows for n, rows in labels.occurring().items() if n not in trained}
        if alone:
            raise UserError(
                f"{WHERE}: {sum(alone.values()):,} {labels.place} rows have classes that no "
                f"training row has ({_listed(sorted(alone))}; training: {_listed(sorted(trained))})"
                "; mend the spelling, or list all classes in data.task.labels"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(f"'{shown(n)}'" for n in names[:5]) + more


def _fold(name: str) -> str:
    """What is left of a name when its spelling does not matter."""
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return str(int(plain)) if plain.isdecimal() and len(plain) < 1000 else plain


def _by_value(name: str) -> tuple[int, float, str]:
    return (0, int(name), name) if _INTEGRAL.fullmatch(name) else (1, 0, name)
