"""A look at somebody's data: what they are, what could be learned, who could be the clients.

Guesses for ``forefed init``; a run itself reads by the settings and refuses what it cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forefed.core.errors import UserError, several
from forefed.core.types import Json
from forefed.data.chat import MESSAGES, as_json, contents
from forefed.data.columns import LABELS, PAIRS, PROMPTS, TEXTS, first_named, texts, unsaid
from forefed.data.files import FILE
from forefed.data.label_checks import kind_of
from forefed.data.label_column import coded, name_of, read_labels
from forefed.data.rows import Rows, Unreadable
from forefed.data.sources import Files

Guess = Literal["classification", "pairs", "multilabel", "regression", "causal_lm", "qa"]
OWNERS = [
    "client",
    "site",
    "owner",
    "user",
    "author",
    "speaker",
    "customer",
    "hospital",
    "clinic",
    "practice",
    "ward",
    "department",
    "branch",
    "device",
    "office",
    "organization",
    "organisation",
    "institution",
    "school",
    "account",
    "writer",
    "reviewer",
    "annotator",
    "center",
    "centre",
    "location",
    "region",
    "country",
    "module",
    "source",
    "group",
    "station",
    "maintainer",
    "team",
    "agent",
    "company",
    "employee",
    "patient",
    "doctor",
    "agency",
    "tenant",
    "store",
    "shop",
    "uploader",
    "submitter",
]
SCORES = ("score", "rating", "similarity", "stars", "grade", "value")
CONTINUATIONS = ("completion", "response", "output", "answer", "text")
SHOWN_LABELS = 50


@dataclass(frozen=True)
class Owners:
    """A column whose values could be the clients: how many there are, how many rows they have."""

    column: str
    owners: int
    smallest: int
    median: int
    largest: int
    missing: int
    """Rows without an owner."""
    by_name: bool
    """Its name says so (or it is the file's name); else it is only possible."""


@dataclass(frozen=True)
class Description:
    """What a file or a folder seems to hold.

    ``columns``: by name, "text", "number", "true or false", "list", "object" or why it is
    unreadable. ``settings``: of ``data.task``, as guessed (``kind`` included). ``labels``: rows by
    label value, at most 50, the most frequent first; ``label_count``: how many there are.
    ``label_kind``: None where nothing is labelled. ``owners``: best guess first. ``characters``: of
    half and of 95 % of the texts at most. ``files``: as the record states them, with the dialect
    where it is not the usual one.
    """

    rows: int
    test_rows: int | None
    columns: dict[str, str]
    task: Guess
    settings: dict[str, Any]
    label_column: str | None
    label_kind: str | None
    labels: dict[str, int]
    label_count: int
    unlabelled: int
    owners: tuple[Owners, ...]
    characters: tuple[int, int]
    files: list[Json]
    notes: tuple[str, ...]


def describe(path: Path, test: Path | None = None) -> Description:
    """Guesses about a file or a folder.

    Raises:
        UserError: it cannot be read, or has no column of texts.
    """
    table = Files(path=path, test=test).load()
    rows = table.rows
    columns = {name: _kind(rows, name) for name in rows.column_names}
    answers = _answers(rows, columns)
    label, kind = (None, None) if answers else _label(rows, columns)
    task, settings = answers or _task(rows, columns, label, kind)
    used = [
        c for value in settings.values() for c in ([value] if isinstance(value, str) else value)
    ]
    named = [c for key, c in settings.items() if key not in ("kind", "label", "labels")]
    read = [c for value in named for c in ([value] if isinstance(value, str) else value)]
    if "messages" in settings:
        found = as_json(rows, settings["messages"])
        lengths = np.array([sum(map(len, contents(text))) for text in found])
    else:
        lengths = np.array([len(t) for t in texts(rows, read)]) if read else np.zeros(1)
    labels: dict[str, int] = {}
    if label is not None and columns[label] in ("text", "number", "true or false"):
        labels = read_labels("training", rows, label).occurring()
    ranked = dict(sorted(labels.items(), key=lambda item: -item[1]))
    return Description(
        rows=len(rows),
        test_rows=None if table.test is None else len(table.test),
        columns=columns,
        task=task,
        settings=settings,
        label_column=label,
        label_kind=kind,
        labels=dict(list(ranked.items())[:SHOWN_LABELS]),
        label_count=len(labels),
        unlabelled=len(rows) - sum(labels.values()) if labels else 0,
        owners=_owners(rows, columns, used),
        characters=(int(np.median(lengths)), int(np.quantile(lengths, 0.95))),
        files=table.provenance["files"],
        notes=(*table.notes, *unsaid(task, settings.get("text"))),
    )


def _kind(rows: Rows, column: str) -> str:
    import pyarrow.types as types

    found = rows.columns[column]
    if isinstance(found, Unreadable):
        return found.reason
    if rows.is_text(column):
        return "text"
    kind = found.type
    if types.is_boolean(kind):
        return "true or false"
    if types.is_list(kind) or types.is_large_list(kind):
        return "list"
    if types.is_nested(kind):
        return "object"
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    return "number" if numbers else str(kind)


def _answers(rows: Rows, columns: dict[str, str]) -> tuple[Guess, dict[str, Any]] | None:
    """What an assistant answers: a column of messages, or prompts with completions."""
    found = first_named(list(columns), MESSAGES)
    if found and any(map(contents, islice(as_json(rows, found[0]), 10))):
        return "causal_lm", {"kind": "causal_lm", "messages": found[0]}
    free = [c for c, what in columns.items() if what == "text"]
    pair = first_named(free, [("prompt", "completion")])
    if pair:
        return "causal_lm", {"kind": "causal_lm", "text": pair[1], "prompt": pair[0]}
    return None


def _label(rows: Rows, columns: dict[str, str]) -> tuple[str | None, str | None]:
    """The column that looks like labels, and what kind of labels they are."""
    named = [*rows.classes] or (first_named(list(columns), LABELS) or [])
    scores = first_named(list(columns), [(name,) for name in SCORES]) or []
    for column in [*named, *scores]:
        if columns[column] == "list":
            return column, "several"
        if columns[column] in ("text", "number", "true or false"):
            occurring = read_labels("training", rows, column).occurring()
            kind = kind_of(occurring)
            if column in named or kind == "scores":
                return column, kind
    for column, what in columns.items():  # a column of few values that come again and again
        if what in ("text", "true or false") and column != FILE and not _is_owner(column):
            occurring = read_labels("training", rows, column).occurring()
            if 2 <= len(occurring) <= max(2, min(50, len(rows) // 5)):
                return column, kind_of(occurring)
    return None, None


NO_TEXTS = (
    "no column of texts; columns here: {}. Give one of texts, of messages (each a list of "
    '{{"role": ..., "content": ...}}), or of prompts and completions'
)


def _task(
    rows: Rows, columns: dict[str, str], label: str | None, kind: str | None
) -> tuple[Guess, dict[str, Any]]:
    free = [c for c, what in columns.items() if what == "text" and c != label and c != FILE]
    asked = first_named(list(columns), [("question", "context", "answers")])
    asked = asked or first_named(list(columns), [("question", "context", "answer", "answer_start")])
    if asked:
        return "qa", {"kind": "qa", "question": asked[0], "context": asked[1], "answer": asked[2]}
    pair = first_named(free, PAIRS)
    one = first_named(free, TEXTS) or _longest(rows, [c for c in free if not _is_owner(c)] or free)
    if label is None or kind == "ids":
        prompt = first_named(free, [(name,) for name in PROMPTS])
        after = first_named(free, [(name,) for name in CONTINUATIONS])
        if prompt and after and prompt != after:
            return "causal_lm", {"kind": "causal_lm", "text": after[0], "prompt": prompt[0]}
        if not one:
            raise UserError(NO_TEXTS.format(several(columns)))
        return "causal_lm", {"kind": "causal_lm", "text": one[0]}
    if not one:
        raise UserError(NO_TEXTS.format(several(columns)))
    tasks: dict[str, Guess] = {"scores": "regression", "several": "multilabel"}
    task = tasks.get(kind or "", "pairs" if pair else "classification")
    if pair and task in ("pairs", "regression"):
        return task, {"kind": task, "text1": pair[0], "text2": pair[1], "label": label}
    return task, {"kind": task, "text": one[0] if len(one) == 1 else one, "label": label}


def _longest(rows: Rows, columns: list[str]) -> list[str]:
    """The column of texts with the most characters, each text counted once.

    (Long names that come again and again, as of owners, are no texts.)
    """
    import pyarrow.compute as pc

    sizes = {c: pc.sum(pc.utf8_length(pc.unique(rows.array(c)))).as_py() or 0 for c in columns}
    return [max(sizes, key=lambda c: sizes[c])] if sizes else []


def _owners(rows: Rows, columns: dict[str, str], used: list[str]) -> tuple[Owners, ...]:
    """Columns that could name the clients: known names first, then the fewest owners."""
    found = []
    for column, what in columns.items():
        if column in used or what not in ("text", "number"):
            continue
        codes, values = coded(rows, column, "partition.column")
        names = [name_of(value) for value in values]
        owned = codes[np.array([n is not None for n in names], dtype=bool)[codes]]
        sizes = np.unique(owned, return_counts=True)[1]
        by_name = column == FILE or _is_owner(column)
        few = len(sizes) <= (len(rows) // 2 if by_name else len(rows) // 10)
        if len(sizes) < 2 or not few or (what == "number" and not by_name):
            continue
        figures = int(sizes.min()), int(np.median(sizes)), int(sizes.max())
        found.append(Owners(column, len(sizes), *figures, len(rows) - len(owned), by_name))
    return tuple(sorted(found, key=lambda o: (not o.by_name, o.owners)))


def _is_owner(column: str) -> bool:
    """Is it called like a client: ``site``, ``site_id``, ``hospital name``?"""
    words = column.lower().replace("_", " ").replace("-", " ").split()
    return bool(words) and (words[0] in OWNERS or words[-1] in OWNERS)
