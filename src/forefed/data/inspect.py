"""A look at somebody's data: what they are, what could be learned, who could be the clients.

Guesses for ``forefed init``; a run itself reads by the settings and refuses what it cannot tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
from forefed.data.tasks.multilabel import CONVENTIONAL, lists_of, separator_of

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
PARTS = {
    *("train", "training", "test", "testing", "dev", "development"),
    *("val", "valid", "validation", "eval", "evaluation"),
}
"""Values of a column that parts the rows, as tables of others have it."""
WORDS_OF_A_TEXT = 4
FEW, MANY = (50, 5), (500, 20)
"""Most values of a column that could be labels, and how many rows each has on the mean at least."""


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
    half and of 95 % of the texts at most. ``other_labels``: columns that could be the labels as
    well. ``other_texts``: columns of texts that are not read. ``files``: as the record states them,
    with the dialect where it is not the usual one.
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
    other_labels: tuple[str, ...]
    other_texts: tuple[str, ...]
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
    if label is not None and task == "multilabel":
        lists = lists_of("training", rows, label, separator_of(rows, label))
        labels = Counter(name for names in lists for name in {*names})
    elif label is not None and task != "causal_lm":
        labels = read_labels("training", rows, label).occurring()
    free = [c for c in columns if c not in used]
    labelled = task != "causal_lm" and task != "qa"
    other_labels = tuple(c for c in free if labelled and _could_be_labels(rows, columns, c))
    other_texts = tuple(c for c in free if labelled and _are_texts(rows, c))
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
        unlabelled=len(rows) - sum(labels.values()) if labels and task != "multilabel" else 0,
        owners=_owners(rows, columns, used),
        characters=(int(np.median(lengths)), int(np.quantile(lengths, 0.95))),
        files=table.provenance["files"],
        other_labels=other_labels,
        other_texts=other_texts,
        notes=(*table.notes, *_notes(rows, columns, task, settings, label)),
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
    for (name,) in CONVENTIONAL:
        if found := first_named([c for c, what in columns.items() if what == "list"], [(name,)]):
            return found[0], "several"
    free = [c for c, what in columns.items() if what != "number"]
    for most in (FEW, MANY):  # of few values that come again and again
        for column in free:
            if _could_be_labels(rows, columns, column, most):
                return column, kind_of(read_labels("training", rows, column).occurring())
    for column in free:
        if _joined(rows, columns, column):
            return column, "several"
    return None, None


def _could_be_labels(
    rows: Rows, columns: dict[str, str], column: str, most: tuple[int, int] = FEW
) -> bool:
    """Few values that come again and again, or called like labels; neither owners nor parts."""
    what = columns[column]
    named = bool(first_named([column], LABELS))
    if what not in ("text", "true or false") and not (what == "number" and named):
        return False
    if column == FILE or _is_owner(column) or _parts(rows, columns, column):
        return False
    occurring = read_labels("training", rows, column).occurring()
    few = 2 <= len(occurring) <= max(2, min(most[0], len(rows) // most[1]))
    return few and (not named or kind_of(occurring) == "classes")


def _joined(rows: Rows, columns: dict[str, str], column: str) -> bool:
    """Texts of several labels, as "red; round": their parts are few, short, and come again."""
    if columns[column] != "text" or column == FILE or _is_owner(column):
        return False
    lists = lists_of("training", rows, column, separator_of(rows, column))
    parts = Counter(name for names in lists for name in {*names})
    several_in_one = any(len(names) > 1 for names in lists)
    few = 2 <= len(parts) <= max(2, min(FEW[0], len(rows) // FEW[1]))
    return several_in_one and few and max(len(name.split()) for name in parts) <= WORDS_OF_A_TEXT


def _parts(rows: Rows, columns: dict[str, str], column: str) -> list[str]:
    """The parts that a column gives its rows to, as "train" and "test"; none: it does not."""
    if columns[column] != "text":
        return []
    values = [name for name in map(name_of, coded(rows, column, column)[1]) if name]
    known = len(values) > 1 and all(name.casefold() in PARTS for name in values)
    return values if known else []


def _are_texts(rows: Rows, column: str) -> bool:
    """Different in most rows, and of several words."""
    import pyarrow.compute as pc

    if not rows.is_text(column) or _is_owner(column):
        return False
    unique = pc.unique(rows.array(column))
    words = pc.sum(pc.match_substring_regex(unique, r"\S\s+\S")).as_py() or 0
    return 2 * len(unique) > len(rows) and 2 * words > len(unique)


def _notes(
    rows: Rows,
    columns: dict[str, str],
    task: Guess,
    settings: dict[str, Any],
    label: str | None,
) -> Iterator[str]:
    """What a guess leaves out, or what may be meant otherwise."""
    for column in columns:
        if parts := _parts(rows, columns, column):
            yield (
                f"column '{column}' parts the rows ({several(parts)}), and is not read: all rows "
                "are drawn on. To keep the parts, write each to a file of its own in one folder "
                "(train.csv, test.csv), and give the folder"
            )
    text = settings.get("text")
    prompts = list(unsaid(task, text))
    yield from prompts
    if task == "causal_lm" and not prompts and not {"prompt", "messages"} & settings.keys():
        why = "no column looks like labels"
        if label is not None:
            why = f"column '{label}' has a value of its own in most rows, as ids do"
        yield (
            f"{why}: a language model learns to write texts like those in column '{text}'. If a "
            'column holds labels, set in [data.task] kind = "classification" and label = its name'
        )
    if label is None or not isinstance(text, str) or len(text.split()) < WORDS_OF_A_TEXT:
        return
    if columns[label] == "text" and label in read_labels("training", rows, label).occurring():
        yield (
            "the first line is taken for the names of the columns, and looks like a row "
            f"('{label}' is a label of others): if it is one, put a line of names above it"
        )


NO_TEXTS = (
    "no column of texts; columns here: {}. Give one of texts, of messages (each a list of "
    '{{"role": ..., "content": ...}}), or of prompts and completions'
)


def _no_texts(columns: dict[str, str]) -> UserError:
    nested = [c for c, what in columns.items() if what == "object"]
    inside = f" (what is inside {several(nested)} is not read: make its fields columns)"
    return UserError(NO_TEXTS.format(several(columns)) + (inside if nested else ""))


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
            raise _no_texts(columns)
        return "causal_lm", {"kind": "causal_lm", "text": one[0]}
    if not one:
        raise _no_texts(columns)
    tasks: dict[str, Guess] = {"scores": "regression", "several": "multilabel"}
    task = tasks.get(kind or "", "pairs" if pair else "classification")
    if pair and task in ("pairs", "regression"):
        return task, {"kind": task, "text1": pair[0], "text2": pair[1], "label": label}
    return task, {"kind": task, "text": one[0] if len(one) == 1 else one, "label": label}


def _longest(rows: Rows, columns: list[str]) -> list[str]:
    """The column of texts with the most characters, each text counted once.

    (Long names that come again and again, as of owners, are no texts, nor is what has no letter.)
    """
    import pyarrow.compute as pc

    unique = {c: pc.unique(rows.array(c)) for c in columns}
    written = {
        c: x for c, x in unique.items() if pc.any(pc.match_substring_regex(x, r"\pL")).as_py()
    }
    sizes = {c: pc.sum(pc.utf8_length(x)).as_py() or 0 for c, x in written.items()}
    return [max(sizes, key=lambda c: sizes[c])] if sizes else []


def _owners(rows: Rows, columns: dict[str, str], used: list[str]) -> tuple[Owners, ...]:
    """Columns that could name the clients: known names first, then the fewest owners."""
    found = []
    for column, what in columns.items():
        if column in used or what not in ("text", "number") or _parts(rows, columns, column):
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
