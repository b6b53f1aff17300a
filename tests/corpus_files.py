"""Builds the small files of the input corpus from the tables in ``tests/corpus/*.toml``.

A file is a string (its text) or a table, by its ``make``:

rows    (without ``make``) ``n`` rows of ``columns``; the suffix decides the format (.csv, .tsv,
        .jsonl, .json, .parquet, and .gz behind it). A column is a pattern, in which ``{i}`` is the
        row's number, or a list of values that is gone through again and again; ``{}`` in a list is
        a missing value. ``head`` and ``tail``: raw lines before and after; ``delimiter`` of a CSV.
repeat  ``before``, ``text`` ``times`` times, ``after``.
bytes   ``hex``: the bytes themselves. ``rows`` with ``encoding`` is another way to odd bytes.
folder  an empty folder.
model   the folder of a tiny model, see ``corpus_models``.
other   a function of ``MAKERS`` below: ``make = "its name"``, called with path and table.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus_models import model


def make_files(folder: Path, files: dict[str, Any]) -> None:
    """All files of a case, below ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            write(path, content.encode())
        else:
            MAKERS[content.get("make", "rows")](path, content)


def write(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def rows(path: Path, table: dict[str, Any]) -> None:
    columns, n = table["columns"], table.get("n", 12)
    records = [{c: _value(spec, i) for c, spec in columns.items()} for i in range(n)]
    kind = next(s for s in reversed(path.suffixes) if s != ".gz")
    if kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return
    if kind == ".json":
        text = json.dumps(records)
    elif kind in (".jsonl", ".ndjson"):
        text = "".join(
            json.dumps({c: x for c, x in record.items() if x is not None}) + "\n"
            for record in records
        )
    else:
        out = io.StringIO()
        delimiter = table.get("delimiter", "\t" if kind == ".tsv" else ",")
        writer = csv.DictWriter(out, list(columns), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        text = out.getvalue()
    text = table.get("head", "") + text + table.get("tail", "")
    write(path, text.encode(table.get("encoding", "utf-8")))


def _value(spec: Any, i: int) -> Any:
    value = spec[i % len(spec)] if isinstance(spec, list) else spec
    if value == {}:
        return None
    return value.replace("{i}", str(i)) if isinstance(value, str) else value


def repeat(path: Path, table: dict[str, Any]) -> None:
    text = table.get("before", "") + table["text"] * table["times"] + table.get("after", "")
    write(path, text.encode())


def raw(path: Path, table: dict[str, Any]) -> None:
    path.write_bytes(bytes.fromhex(table["hex"]))


def folder(path: Path, table: dict[str, Any]) -> None:
    path.mkdir()


MAKERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "rows": rows,
    "repeat": repeat,
    "bytes": raw,
    "folder": folder,
    "model": model,
}
