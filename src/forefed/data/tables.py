"""Builds columns from rows that are read block by block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.data.rows import Rows, array_of, merged, printable

MOST_COLUMNS = 4096


class Builder:
    """Collects blocks of rows; columns may come and go."""

    def __init__(self, path: Path):
        self.path, self.n = path, 0
        self.blocks: dict[str, list[Any]] = {}

    def add(self, names: Sequence[str], columns: Sequence[Sequence[Any]], n: int) -> None:
        """``n`` rows as columns."""
        import pyarrow

        for name, values in zip(names, columns, strict=True):
            if name not in self.blocks:
                self._check(name)
                self.blocks[name] = [pyarrow.nulls(self.n)] if self.n else []
            self.blocks[name].append(array_of(values))
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
        import pyarrow

        columns = {}
        for name in list(self.blocks):  # a column's parts go as it is merged
            columns[name] = merged(self.blocks.pop(name), str(self.path), name)
        pyarrow.default_memory_pool().release_unused()
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
