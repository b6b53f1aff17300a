"""Builds columns from rows that are read block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forefed.core.errors import UserError
from forefed.data.rows import Rows, array_of, merged, printable

if TYPE_CHECKING:
    import pyarrow

MOST_COLUMNS = 4096


class Text:
    """The strings of one column in buffers that grow where they stand. Many small arrays, joined
    at the end, take twice as much memory and leave holes."""

    def __init__(self) -> None:
        self.data, self.ends, self.given = bytearray(), bytearray(bytes(8)), bytearray()

    def add(self, block: pyarrow.StringArray) -> None:
        if not len(block):
            return
        valid, offsets, data = block.buffers()
        bounds = np.frombuffer(offsets, np.int32)[block.offset :][: len(block) + 1]
        ends = bounds[1:].astype(np.int64) + (len(self.data) - int(bounds[0]))
        self.ends += ends.data
        if data is not None:
            self.data += memoryview(data)[bounds[0] : bounds[-1]]
        self.given += _bits(valid, block.offset, len(block))

    def array(self) -> pyarrow.LargeStringArray:
        import pyarrow

        given = np.frombuffer(self.given, bool)
        valid = None if given.all() else pyarrow.py_buffer(np.packbits(given, bitorder="little"))
        ends, data = pyarrow.py_buffer(self.ends), pyarrow.py_buffer(self.data)
        return pyarrow.LargeStringArray.from_buffers(len(given), ends, data, valid)


def _bits(bitmap: pyarrow.Buffer | None, offset: int, n: int) -> bytes:
    """A bitmap of pyarrow's as bytes of 0 and 1; without one all are 1. (``to_numpy`` would import
    pandas.)"""
    if bitmap is None:
        return b"\1" * n
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[offset : offset + n].tobytes()


class Builder:
    """Collects blocks of rows; columns may come and go."""

    def __init__(self, path: Path):
        self.path, self.n = path, 0
        self.blocks: dict[str, list[Any]] = {}

    def add(self, names: Sequence[str], columns: Sequence[Sequence[Any]], n: int) -> None:
        """``n`` rows as columns."""
        import pyarrow
        import pyarrow.types as types

        for name, values in zip(names, columns, strict=True):
            if name not in self.blocks:
                self._check(name)
                self.blocks[name] = [pyarrow.nulls(self.n)] if self.n else []
            parts, found = self.blocks[name], array_of(values)
            if isinstance(found, Exception) or not types.is_string(found.type):
                parts.append(found)
                continue
            if not parts or not isinstance(parts[-1], Text):
                parts.append(Text())
            parts[-1].add(found)
        for name in self.blocks.keys() - set(names):
            self.blocks[name].append(pyarrow.nulls(n))
        self.n += n

    def add_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows as objects."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        if len(names) > MOST_COLUMNS:
            self._check(names[-1], len(names))
        self.add(names, [[row.get(name) for row in rows] for name in names], len(rows))

    def rows(self) -> Rows:
        columns = {}
        for name in list(self.blocks):  # a column's parts go as it is merged
            parts = [p.array() if isinstance(p, Text) else p for p in self.blocks.pop(name)]
            columns[name] = merged(parts, str(self.path), name)
        return Rows(self.n, columns)

    def _check(self, name: str, more: int = 1) -> None:
        if printable(name) != f"'{name}'":
            raise UserError(
                f"{self.path}: the column {printable(name)} has a name that is no text (half a "
                "surrogate pair); rename it"
            )
        if len(self.blocks) + more > MOST_COLUMNS:
            raise UserError(
                f"{self.path}: more than {MOST_COLUMNS:,} columns; are keys and values swapped?"
            )
