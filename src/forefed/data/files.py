"""Reads text tables from files, in memory, and names the place of every fault.

Read here and not with ``datasets.load_dataset``, which would copy private texts into a cache folder
in the user's home and names no line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from forefed.core.errors import UserError
from forefed.core.types import Json

if TYPE_CHECKING:
    import pyarrow

Format = Literal["auto", "csv", "tsv", "json", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_NOT_TRAINED_ON = ("test", "dev", "val")  # file names of other splits, where there are train* files


def find_files(
    path: Path, format: Format, where: str, split: bool = True
) -> tuple[list[Path], list[Path]]:
    """The files of the training and of the test rows, by name.

    A folder with files ``train*`` is split by file names (``test*``; ``dev*`` and ``val*`` are not
    used); in any other folder, or without ``split``, all files together are the rows.

    Raises:
        UserError: ``path`` is missing, of an unknown format, or a folder without readable files.
    """
    path = path.expanduser()
    if path.is_file():
        if format == "auto" and _format(path) is None:
            raise UserError(
                f"{where}: the suffix of '{path}' tells no format; name it .csv, .tsv, .json, "
                ".jsonl or .parquet (.gz may follow), or set data.source.format"
            )
        return [path], []
    if not path.is_dir():
        raise UserError(f"{where}: there is no file or folder '{path}'")
    files = [f for f in sorted(path.iterdir()) if f.is_file() and _format(f)]
    if not files:
        raise UserError(
            f"{where}: the folder '{path}' holds no .csv, .tsv, .json, .jsonl or .parquet file"
        )
    train = [f for f in files if f.name.lower().startswith("train")]
    if not split or not train:
        return files, []
    return train, [f for f in files if f.name.lower().startswith("test")]


def read_files(paths: Sequence[Path], format: Format) -> tuple[pyarrow.Table, list[Json]]:
    """All rows of these files, and what a record states of each file (name, size, digest).

    A column that only some files have is empty in the others.

    Raises:
        UserError: a file that is empty, damaged, not UTF-8 or malformed; names file and line.
    """
    import pyarrow

    tables, provenance = [], []
    for path in paths:
        data = path.read_bytes()
        table = _read(path, data, format)
        if not table.num_rows or not table.num_columns:
            raise UserError(f"{path}: the file has no rows")
        tables.append(table)
        sha256 = hashlib.sha256(data).hexdigest()
        about = {"name": path.name, "bytes": len(data), "sha256": sha256, "rows": table.num_rows}
        provenance.append(about)
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive"), provenance
    except pyarrow.ArrowException as error:
        names = ", ".join(p.name for p in paths)
        raise UserError(
            f"{paths[0].parent}: the files {names} do not fit together ({_line_of(error)}); "
            "give one file as data.source.path"
        ) from error


def _format(path: Path) -> Format | None:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _read(path: Path, data: bytes, format: Format) -> pyarrow.Table:
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip file ({error}); copy it again") from error
    actual = _format(path) if format == "auto" else format
    if actual == "parquet":
        return _read_parquet(path, data)
    text = _decode(path, data)
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    if actual == "json":
        return _columns(path, _read_json(path, text))
    return _columns(path, _read_csv(path, text, "\t" if actual == "tsv" else ","))


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}); save the file as UTF-8"
        ) from error


def _read_json(path: Path, text: str) -> list[dict[str, Any]]:
    """A list of objects, or one object per line."""
    rows: Any
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        numbers: Sequence[int] = range(1, len(rows) + 1)
        place = "row"
    else:
        rows, numbers, place = [], [], "line"
        # Not splitlines: JSON strings may hold the other characters that it takes for line ends.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from error
                numbers.append(number)
    for number, row in zip(numbers, rows, strict=True):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, {place} {number}: expected an object with columns by name, for example "
                '{"text": "...", "label": "..."}'
            )
    return list(rows)


def _read_csv(path: Path, text: str, delimiter: str) -> list[dict[str, Any]]:
    """All values stay strings; the first line names the columns."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents exceed the default
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next(reader)
        if len(set(header)) < len(header):
            raise UserError(f"{path}, line 1: two columns have the same name: {', '.join(header)}")
        rows = []
        for fields in reader:
            if fields and len(fields) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, but line 1 names "
                    f"{len(header)} columns; quote fields that contain separators or line ends"
                )
            if fields:
                rows.append(dict(zip(header, fields, strict=True)))
        return rows
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: malformed ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path, data: bytes) -> pyarrow.Table:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({_line_of(error)})") from error


def _columns(path: Path, rows: list[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, UnicodeEncodeError) as error:
            raise UserError(
                f"{path}: column '{name}' cannot be read ({_line_of(error)}); give every row the "
                "same kind of value"
            ) from error
    return pyarrow.table(columns)


def _line_of(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
