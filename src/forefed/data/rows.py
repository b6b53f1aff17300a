"""Rows in columns: pyarrow arrays, converted when a column is asked for and not before.

A column that nobody names may hold what it likes: what cannot be read is remembered as the reason,
and said by whoever asks for the column.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from forefed.core.errors import UserError
from forefed.data.examples import Indices

if TYPE_CHECKING:
    import pyarrow

CHUNK = 2048
"""Rows that are Python objects at one time."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unreadable:
    """A column that cannot be used, and the sentence that says why."""

    reason: str


@dataclass(frozen=True)
class Rows:
    """``n`` rows. ``classes`` are the names of the classes of typed label columns (of a data set
    with ``ClassLabel``), by column. ``places``: where each stood before some were left out, from 0;
    None: all are here."""

    n: int
    columns: Mapping[str, pyarrow.ChunkedArray | Unreadable]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Indices | None = None

    def __len__(self) -> int:
        return self.n

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    @staticmethod
    def of(columns: Mapping[str, Sequence[Any]]) -> Rows:
        """From lists of equal length.

        Raises:
            UserError: on use, of a column whose values are of several kinds.
        """
        found = {name: column_of([values], "the table", name) for name, values in columns.items()}
        return Rows(max(map(len, columns.values()), default=0), found)

    @staticmethod
    def of_table(table: pyarrow.Table) -> Rows:
        """From a pyarrow table, with the class names that Hugging Face's metadata give."""
        return Rows(
            table.num_rows,
            {name: table.column(i) for i, name in enumerate(table.column_names)},
            class_names(table.schema.metadata),
        )

    def number(self, row: int) -> int:
        """What a message calls a row: its number in the source, from 1."""
        return int(row if self.places is None else self.places[row]) + 1

    def array(self, column: str) -> pyarrow.ChunkedArray:
        """The column as pyarrow has it; raises UserError if it cannot be read."""
        found = self.columns[column]
        if isinstance(found, Unreadable):
            raise UserError(found.reason)
        return found

    def table(self) -> pyarrow.Table:
        """All columns that can be read; of the others a warning in the log says why not."""
        import pyarrow

        found = {}
        for name, column in self.columns.items():
            if isinstance(column, Unreadable):
                _LOG.warning("column %r is left out: %s", name, column.reason)
            else:
                found[name] = column
        return pyarrow.table(found)

    def __getitem__(self, column: str) -> list[Any]:
        """All values, as Python objects."""
        return list(self.values(column))

    def values(self, column: str) -> Iterator[Any]:
        """All values one after another; few are Python objects at one time."""
        array = self.array(column)
        for start in range(0, len(array), CHUNK):
            yield from array.slice(start, CHUNK).to_pylist()

    def is_text(self, column: str) -> bool:
        """Is it a column of strings?"""
        import pyarrow.types as types

        found = self.columns[column]
        if isinstance(found, Unreadable):
            return False
        kind = found.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    def fields(self, column: str) -> set[str]:
        """The names within a column of objects; none of any other column."""
        import pyarrow.types as types

        found = self.columns[column]
        if isinstance(found, Unreadable) or not types.is_struct(found.type):
            return set()
        return {found.type.field(i).name for i in range(found.type.num_fields)}

    def select(self, rows: Indices | Sequence[int]) -> Rows:
        """These rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        taken = {
            name: x if isinstance(x, Unreadable) else x.take(integers(index))
            for name, x in self.columns.items()
        }
        places = index if self.places is None else self.places[index]
        return Rows(len(index), taken, self.classes, places)

    def with_column(self, name: str, values: pyarrow.ChunkedArray) -> Rows:
        return replace(self, columns={**self.columns, name: values})


def column_of(chunks: Iterable[Sequence[Any]], place: str, name: str) -> Any:
    """One column from its values, some at a time: an array, or why it is none.

    Integers beyond 64 bits become text. Strings have 64-bit offsets, for more than 2 GB of text.
    """
    return merged([array_of(values) for values in chunks], place, name)


def array_of(values: Sequence[Any]) -> pyarrow.Array | Exception:
    """The values as an array, or what pyarrow says of them."""
    import pyarrow

    pool = pyarrow.system_memory_pool()  # the default one keeps 8 MB and more of what is given back
    try:
        if {str} <= set(map(type, values)) <= {str, type(None)}:
            texts = pyarrow.lib.StringBuilder(pool)
            texts.append_values(values)
            return texts.finish()
        found = pyarrow.array(values, from_pandas=False, memory_pool=pool)  # (imports pandas)
    except OverflowError as error:
        if all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in values):
            return pyarrow.array([None if v is None else str(v) for v in values])
        return error
    except (pyarrow.ArrowException, UnicodeEncodeError, ValueError, TypeError) as error:
        return error
    return found


def integers(values: Indices) -> pyarrow.Array:
    """An array of the same memory. ``pyarrow.array`` would import pandas where that is installed,
    which takes .3 s and 30 MB."""
    import pyarrow

    there = pyarrow.py_buffer(np.ascontiguousarray(values, dtype=np.int64))
    return pyarrow.Array.from_buffers(pyarrow.int64(), len(values), [None, there])


def merged(chunks: Sequence[Any], place: str, name: str) -> pyarrow.ChunkedArray | Unreadable:
    """Arrays of one column, made one; ``Unreadable`` where one is an error or they do not fit.

    Args:
        place: what the message calls the file.
    """
    import pyarrow
    import pyarrow.types as types

    fault = next((c for c in chunks if isinstance(c, Exception)), None)
    if fault is None:
        kinds = list(dict.fromkeys(c.type for c in chunks))
        whole = [k for k in kinds if types.is_integer(k) or types.is_null(k)]
        texts = [k for k in kinds if _is_string(k)]
        mixed = any(map(types.is_integer, whole)) and len(whole) + len(texts) == len(kinds)
        try:
            if texts and mixed and _are_all_numbers(chunks):
                kind = pyarrow.large_string()
            else:
                kind = _common(kinds)
            parts = [c if c.type == kind else c.cast(kind) for c in chunks]  # (a cast may copy)
            return pyarrow.chunked_array(parts, kind)
        except (pyarrow.ArrowException, TypeError) as error:
            fault = error
    return Unreadable(
        f"{place}: column {printable(name)} cannot be read ({first_line(fault)}); give every row "
        "the same kind of value"
    )


def _common(kinds: Sequence[Any]) -> Any:
    """The type of all; text with 64-bit offsets."""
    import pyarrow
    import pyarrow.types as types

    fields = [pyarrow.schema([pyarrow.field("x", k)]) for k in kinds] or [
        pyarrow.schema([pyarrow.field("x", pyarrow.null())])
    ]
    kind = pyarrow.unify_schemas(fields, promote_options="permissive").field("x").type
    return pyarrow.large_string() if types.is_string(kind) else kind


def _are_all_numbers(chunks: Sequence[Any]) -> bool:
    """Is every text among them an integer that 64 bits do not hold?"""
    texts = [c for c in chunks if _is_string(c.type)]
    return all(t is None or t.lstrip("-").isdigit() for c in texts for t in c.to_pylist())


def _is_string(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """By column, the class names in the metadata that the library ``datasets`` writes."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: tuple(map(str, about["names"]))
            for column, about in features.items()
            if isinstance(about, dict) and isinstance(about.get("names"), list)
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


class Strings(Sequence[str]):
    """Texts in one pyarrow array: a tenth of what as many Python strings take.

    Args:
        rows: the positions in the array that are meant, in their order; None: all. A part of the
            texts is a view, so that no text is in memory twice.
    """

    def __init__(self, array: pyarrow.ChunkedArray, rows: Indices | None = None):
        self.array, self.rows = array, rows

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            start, stop, step = i.indices(len(self))
            if self.rows is None:
                return self.array.slice(start, max(0, stop - start)).to_pylist()[::step]
            return self._at(self.rows[start:stop:step])
        return str(self.array[i if self.rows is None else int(self.rows[i])].as_py())

    def _at(self, rows: Indices) -> list[str]:
        import pyarrow
        import pyarrow.compute as pc

        if not len(rows):
            return []
        first, last = int(rows.min()), int(rows.max())  # what is taken from is copied whole
        near = self.array.slice(first, last - first + 1)
        pool = pyarrow.system_memory_pool()  # as in array_of
        return pc.take(near, integers(rows - first), memory_pool=pool).to_pylist()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def take(self, rows: Indices) -> Strings:
        index = np.asarray(rows, dtype=np.int64)
        return Strings(self.array, index if self.rows is None else self.rows[index])


def printable(name: str) -> str:
    """A name in quotes, with what no terminal can write escaped."""
    return f"'{name.encode('utf-8', 'backslashreplace').decode()}'"


def first_line(error: object) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
