"""Comma-, tab- or otherwise separated files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forefed.core.errors import UserError, several
from forefed.core.types import Json
from forefed.data.rows import CHUNK, Rows
from forefed.data.streams import as_text
from forefed.data.tables import Builder

Quoting = Literal["auto", "yes", "no"]
_OTHER = (";", "\t", "|")  # separators of files that are called .csv


@dataclass(frozen=True)
class Dialect:
    """What a user says of a separated file; None and "auto": found out."""

    delimiter: str | None = None
    quoting: Quoting = "auto"


AS_FOUND = Dialect()


def read_delimited(
    path: Path, dialect: Dialect, delimiter: str | None
) -> tuple[Rows, list[str], Json]:
    """All values stay strings; the first line names the columns.

    The separator is the comma unless the first line has none and has another one. Quotes around
    fields are read as such; in a tab-separated file they are plain characters if a quoted field
    would hold tabs and line ends, or would not end, and every line has the right number of fields
    without them.

    Args:
        delimiter: what the format says; None: found out.

    Returns:
        The rows, notes for the user, and what a record states.

    Raises:
        UserError: an empty or malformed file; names the line.
    """
    with as_text(path, "") as text:
        first = next((line for line in text if line.strip()), "")
    if not first:
        raise UserError(f"{path}: the file is empty")
    if "\0" in first:
        raise UserError(f"{path}, line 1: NUL characters (UTF-16?); save the file as UTF-8")
    separator = dialect.delimiter or delimiter or _said(first) or _separator(first)
    about: Json = {} if separator in (",", delimiter) else {"delimiter": separator}
    if dialect.quoting == "no":
        return _parse(path, separator, csv.QUOTE_NONE, first)[0], [], {**about, "quoting": "no"}
    plain = separator == "\t" and dialect.quoting == "auto"
    try:
        rows, suspicious = _parse(path, separator, csv.QUOTE_MINIMAL, first)
    except UserError as error:
        found = _without_quotes(path, separator, first) if plain else None
        if found is None:
            raise error
        rows, suspicious = found, True
    else:
        if not suspicious or not plain:
            return rows, [], about
        rows = _without_quotes(path, separator, first) or rows
    note = f"{path.name}: {rows.n:,} rows; quotes are plain characters here (data.source.quoting)"
    return rows, [note], {**about, "quoting": "no"}


def _said(first: str) -> str | None:
    """The separator of a file whose first line is "sep=;", as spreadsheets write it."""
    line = first.rstrip("\r\n")
    return line[4] if len(line) == 5 and line.lower().startswith("sep=") else None


def _separator(first: str) -> str:
    """The comma, or what the first line has in its place."""
    if "," in first:
        return ","
    return max(_OTHER, key=first.count) if any(s in first for s in _OTHER) else ","


def _without_quotes(path: Path, separator: str, first: str) -> Rows | None:
    try:
        return _parse(path, separator, csv.QUOTE_NONE, first)[0]
    except UserError:
        return None


def _parse(path: Path, separator: str, quoting: Any, first: str) -> tuple[Rows, bool]:
    """The rows, and whether a quoted field holds separators and line ends."""
    builder, suspicious = Builder(path), False
    options = {"quoting": quoting, "skipinitialspace": separator != "\t" and ", " in first}
    with as_text(path, "") as text, _long_fields():
        reader = csv.reader(text, delimiter=separator, strict=True, **options)
        try:
            if _said(first):
                next(record for record in reader if record)
            header = _header(path, next(record for record in reader if record))
            block: list[list[str]] = []
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, but line 1 names "
                        f"{len(header)} columns; quote fields that contain separators or line "
                        "ends, or set data.source.delimiter"
                    )
                if separator == "\t" and not suspicious:
                    suspicious = any("\n" in f and "\t" in f for f in fields)
                block.append(fields)
                if len(block) == CHUNK:
                    builder.add(header, list(zip(*block, strict=True)), len(block))
                    block = []
            builder.add(header, list(zip(*block, strict=True)) or [()] * len(header), len(block))
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: malformed ({error}); where quotes are plain "
                'characters set data.source.quoting = "no"'
            ) from error
    return builder.rows(), suspicious


def _header(path: Path, names: list[str]) -> list[str]:
    """The columns' names without blanks around; one without a name is called by its number."""
    header = [name.strip() or f"column {i}" for i, name in enumerate(names, 1)]
    double = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if double:
        raise UserError(f"{path}, line 1: two columns have the same name: {several(double)}")
    return header


@contextmanager
def _long_fields() -> Iterator[None]:
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents exceed the default
    try:
        yield
    finally:
        csv.field_size_limit(limit)
