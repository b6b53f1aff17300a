"""What is refused as a column of classes: scores, several labels at once, ids, two spellings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from forefed.core.errors import UserError
from forefed.data.label_column import INTEGRAL, WHERE, Labels, all_occurring, fold, listed, shown

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SEPARATORS = (",", ";", "|")
FEWEST_IDS = 5
"""Rows from which on "as many classes as rows" tells ids."""

KNOWN_PARTS = 0.9
"""Share of the parts of joined names that come again: of many labels one is always rare."""

LabelKind = Literal["classes", "scores", "several", "ids"]


def kind_of(occurring: Mapping[str, int]) -> LabelKind:
    """What names with these numbers of rows are, as far as they tell."""
    if _broken_numbers(occurring):
        return "scores"
    if _joined_names(occurring):
        return "several"
    return "ids" if _are_ids(occurring) else "classes"


def without_minus_one(labels: Labels, found: Sequence[Labels], refuse: bool) -> Labels:
    """-1 is no class beside three or more classes 0, 1, ..., or where it stands in test rows only;
    with -1 and 1 (and 0) it is one."""
    trained = set(found[0].occurring())
    numbers = {int(v) for v in all_occurring(found) if INTEGRAL.fullmatch(v)}
    a_class = "-1" in trained and numbers <= {-1, 0, 1}
    if "-1" not in labels.names or a_class or len(numbers) != len(all_occurring(found)):
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


def refuse_missing(labels: Labels, column: str) -> None:
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


def refuse_scores(found: Sequence[Labels], column: str) -> None:
    broken = _broken_numbers(all_occurring(found))
    if not broken:
        return
    labels = next(x for x in found if broken[0] in x.names)
    raise UserError(
        f"{WHERE}: column '{column}' holds scores, not classes ({broken[0]} in row "
        f'{labels.first(broken[0])} of the {labels.place} rows): set data.task = "regression", '
        "or list them in data.task.labels to learn them as classes"
    )


def refuse_joined(found: Sequence[Labels], column: str, occurring: dict[str, int]) -> None:
    joined = _joined_names(occurring)
    if joined:
        raise UserError(
            f"{WHERE}: column '{column}' seems to hold several labels at once "
            f"('{shown(joined[0])}'): set data.task = \"multilabel\", or list the classes in "
            "data.task.labels to learn each combination as one"
        )


def refuse_ids(labels: Labels, column: str) -> None:
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
    """The names that are made of others: their parts, but for a rare one, stand alone or in two."""
    names = set(occurring)
    for separator in _SEPARATORS:
        joined = {n: {p.strip() for p in n.split(separator)} for n in names if separator in n}
        parts = Counter(p for each in joined.values() for p in each if p)
        again = sum(p in names or n > 1 for p, n in parts.items())
        if joined and again >= KNOWN_PARTS * len(parts):
            return sorted(joined)
    return []


def _are_ids(occurring: Mapping[str, int]) -> bool:
    """As many classes as rows, or most classes in a single row."""
    classes, single = len(occurring), sum(n == 1 for n in occurring.values())
    if classes >= FEWEST_IDS and single == classes:
        return True
    return classes >= 10 and 2 * single > classes


def refuse_near_duplicates(occurring: dict[str, int]) -> None:
    folded: dict[str, list[str]] = {}
    for name in occurring:
        folded.setdefault(fold(name), []).append(name)
    double = [sorted(names) for names in folded.values() if len(names) > 1]
    if double:
        pairs = "; ".join(
            " and ".join(f"'{shown(n)}' ({occurring[n]:,} rows)" for n in names)
            for names in double[:3]
        )
        raise UserError(
            f"{WHERE}: one class in two spellings? {pairs}. Write them alike, or list the classes "
            "in data.task.labels (then case does not matter)"
        )


def refuse_untrained(found: Sequence[Labels]) -> None:
    trained = found[0].occurring()
    for labels in found[1:]:
        alone = {n: rows for n, rows in labels.occurring().items() if n not in trained}
        if alone:
            raise UserError(
                f"{WHERE}: {sum(alone.values()):,} {labels.place} rows have classes that no "
                f"training row has ({listed(sorted(alone))}; training: {listed(sorted(trained))})"
                "; mend the spelling, or list all classes in data.task.labels"
            )
