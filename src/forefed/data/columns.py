"""Finds the columns that a task reads, and their texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forefed.core.errors import UserError, nearest, several
from forefed.data.rows import CHUNK, Rows, Strings

if TYPE_CHECKING:
    import pyarrow

FEWEST_WORDS = 10
"""Rows from which on texts of one word are pointed out."""

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


def named(rows: Rows, column: str, where: str) -> str:
    """``column`` itself; raises UserError if the rows have none of this name."""
    if column not in rows.column_names:
        raise UserError(
            f"{where}: there is no column '{column}': {nearest(column, rows.column_names)}"
        )
    return column


def guess(
    rows: Rows,
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
        found = [c for c in free if rows.is_text(c)]
        if len(found) != len(conventional[0]):
            raise cannot_tell(rows, where)
    return found


def guess_label(rows: Rows, where: str, taken: Sequence[str]) -> str:
    """The column of class labels: by its type (a ``ClassLabel`` of datasets), else its name.

    Raises:
        UserError: no or several answers; names all columns.
    """
    free = [c for c in rows.column_names if c not in taken]
    typed = [c for c in free if c in rows.classes]
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


def cannot_tell(rows: Rows, where: str) -> UserError:
    """The error of a column that must be named."""
    return UserError(
        f"{where}: cannot tell which column is meant; name it. Columns here: "
        f"{several(rows.column_names)}"
    )


def texts(rows: Rows, columns: Sequence[str]) -> Strings:
    """One text per row: the columns' values joined by a newline; a missing value is empty text.

    Raises:
        UserError: a column of lists, objects or bytes.
    """
    import pyarrow
    import pyarrow.compute as pc

    parts = [_strings(rows, column) for column in columns]
    if len(parts) == 1:
        return Strings(parts[0])
    return Strings(
        pc.binary_join_element_wise(*parts, pyarrow.scalar("\n", pyarrow.large_string()))
    )


def _strings(rows: Rows, column: str) -> pyarrow.ChunkedArray:
    import pyarrow
    import pyarrow.compute as pc

    array = rows.array(column)
    if rows.is_text(column):
        strings = array.cast(pyarrow.large_string())
        return pc.fill_null(strings, "") if strings.null_count else strings  # (imports pandas)
    blocks: list[pyarrow.Array] = []
    done = 0
    while done < len(array) or not blocks:
        values = array.slice(done, CHUNK).to_pylist()
        bad = next((i for i, v in enumerate(values) if isinstance(v, list | dict | bytes)), None)
        if bad is not None:
            place = f"row {rows.number(done + bad)}"
            raise UserError(f"data.task: column '{column}' holds no text ({place})")
        strings = ["" if v is None else str(v) for v in values]
        blocks.append(pyarrow.array(strings, pyarrow.large_string()))
        done += len(values)
    return pyarrow.chunked_array(blocks)


def check_texts(texts: Strings, column: str, named: bool, setting: str = "text") -> tuple[str, ...]:
    """Notes on texts that look like no texts.

    Args:
        named: the user named the column.

    Raises:
        UserError: no text at all, or ids in a column that was guessed.
    """
    import pyarrow.compute as pc

    def share(pattern: str) -> float:
        found = pc.match_substring_regex(texts.array, pattern)
        return float(pc.sum(found).as_py() or 0) / len(texts)

    if not len(texts) or share(r"\S") == 0:
        raise UserError(f"data.task.{setting}: every text in column '{column}' is empty")
    if len(texts) < FEWEST_WORDS or share(r"\S\s+\S") > 0.1 or share(r"^\s*[!-~]+\s*$") < 0.9:
        return ()
    example = next(text.strip() for text in texts if text.strip())[:40]
    numbered = share("[0-9]") > 0.9 and pc.count_distinct(texts.array).as_py() == len(texts)
    if numbered and not named:
        raise UserError(
            f"data.task.{setting}: column '{column}' holds ids rather than texts (like "
            f"'{example}'); name the column of texts"
        )
    return (f"the texts in column '{column}' are single words (like '{example}'): is it the one?",)


PROMPTS = ("prompt", "instruction", "question", "input")
"""What columns of prompts are called."""


def unsaid(task: str, text: object) -> tuple[str, ...]:
    """What to say of prompts that are learned as texts, as no column of answers is there."""
    if task != "causal_lm" or not isinstance(text, str) or text.lower() not in PROMPTS:
        return ()
    return (
        f"column '{text}' looks like prompts, and is learned as text: answers are learned where "
        "data.task.prompt names it and data.task.text a column of answers",
    )
