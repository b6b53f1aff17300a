"""JSON and JSON lines as rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.terminal import one_line
from forefed.data.rows import CHUNK, Rows
from forefed.data.streams import as_text, whole_text
from forefed.data.tables import Builder

LISTS = ("data", "rows", "examples", "records", "items")
"""Names under which a file may hold its rows, one level down."""
_OBJECT = 'expected an object with columns by name, for example {"text": "...", "label": "..."}'


def read_json(path: Path) -> Rows:
    """One object per line; a list of objects; ``{"data": [...]}``; or columns by name, each a list.

    Raises:
        UserError: malformed, too deep, or no objects; names the line or the row.
    """
    with as_text(path, "\n") as text:
        lines = ((number, line) for number, line in enumerate(text, 1) if line.strip())
        first = next(lines, None)
        if first is None:
            raise UserError(f"{path}: the file is empty")
        if not first[1].lstrip().startswith("["):
            try:
                row = _loads(path, first[1], f"line {first[0]}")
            except UserError as error:
                row, fault = None, error
            if isinstance(row, dict) or not first[1].lstrip().startswith("{"):
                second = next(lines, None)
                if row is None:
                    raise fault
                if second is not None or not isinstance(row, dict):
                    return _of_lines(path, [(first[0], row)], [second] if second else [], lines)
                return _of_object(path, row) or _of_rows(path, [row], "line")
    try:
        whole = _loads(path, whole_text(path), "")
    except UserError as error:
        raise error if first[1].lstrip().startswith("[") else fault from None
    if isinstance(whole, dict):
        return _of_object(path, whole) or _of_rows(path, [whole], "row")
    return _of_rows(path, whole, "row")


def _of_lines(
    path: Path,
    start: list[tuple[int, Any]],
    second: list[tuple[int, str]],
    rest: Iterable[tuple[int, str]],
) -> Rows:
    builder, block = Builder(path), []
    for number, value in start:
        block.append(_object(path, value, f"line {number}"))
    for lines in (second, rest):
        for number, line in lines:
            place = f"line {number}"
            block.append(_object(path, _loads(path, line, place), place))
            if len(block) == CHUNK:
                builder.add_rows(block)
                block = []
    builder.add_rows(block)
    return builder.rows()


def _of_rows(path: Path, rows: list[Any], place: str) -> Rows:
    builder = Builder(path)
    for start in range(0, len(rows), CHUNK):
        block = rows[start : start + CHUNK]
        builder.add_rows([_object(path, r, f"{place} {start + i}") for i, r in enumerate(block, 1)])
    return builder.rows()


def _of_object(path: Path, value: dict[str, Any]) -> Rows | None:
    """Rows one level down, or columns of equal length; None: the object is a row itself."""
    for name in LISTS:
        rows = value.get(name)
        if isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows):
            return _of_rows(path, rows, f"{name}, row")
    columns = [
        list(c.values()) if isinstance(c, dict) else c
        for c in value.values()
        if isinstance(c, list | dict)
    ]
    sizes = {len(c) for c in columns}
    if len(columns) < max(2, len(value)) or len(sizes) != 1 or not sizes - {0}:
        return None
    if any(isinstance(x, list | dict) for c in columns for x in c):
        return None
    builder = Builder(path)
    builder.add(list(value), columns, sizes.pop())
    return builder.rows()


def _object(path: Path, value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}, {place}: {_OBJECT}")
    return value


class _Twice(ValueError):
    """A key that an object has twice; JSON leaves open which of the two counts (RFC 8259, 4)."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


def _loads(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except _Twice as error:
        where = f", {place}" if place else ""
        key = one_line(str(error), 60)
        raise UserError(f"{path}{where}: the key '{key}' stands twice in one object") from None
    except json.JSONDecodeError as error:
        where = place or f"line {error.lineno}"
        raise UserError(f"{path}, {where}: not JSON ({error.msg})") from error
    except RecursionError:
        where = f", {place}" if place else ""
        raise UserError(
            f"{path}{where}: lists or objects are nested too deep; keep the columns that are used"
        ) from None
    except ValueError as error:  # Python's own bound on digits
        where = f", {place}" if place else ""
        raise UserError(
            f"{path}{where}: a number has too many digits to be one; write it as text"
        ) from error
