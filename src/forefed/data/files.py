"""Finds and reads tables of text: which files, which format, and the place of every fault.

Read here and not with ``datasets.load_dataset``, which would copy private texts into a cache folder
in the user's home and names no line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forefed.core.errors import UserError
from forefed.core.types import Json
from forefed.data import arrow, delimited, jsonrows
from forefed.data.delimited import AS_FOUND, Dialect
from forefed.data.rows import Rows, Unreadable, merged
from forefed.data.streams import opened

Format = Literal["auto", "csv", "tsv", "json", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_SPLIT = re.compile(r"(train|test|dev|val|valid|validation|eval)(ing)?(?![a-z])")
_NO_TABLES = {
    b"version https://git-lfs.github.com": "a pointer of Git LFS, not the file; run 'git lfs pull' "
    "there",
    b"<!doctype html": "a web page, not the file; download the file itself",
    b"<html": "a web page, not the file; download the file itself",
    b"pk\x03\x04": "an archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"\x1f\x8b": "packed by gzip; add .gz to its name",
}
"""Beginnings (in small letters) of what is often called .csv or .json, and is none."""
FILE = "file"
"""The column that tells each row's file, where a folder has several (``one client per file``)."""


@dataclass(frozen=True)
class Found:
    """Files of the training and of the test rows. ``saved``: folders of the library ``datasets``.
    ``sites``: every training file is a site of its own."""

    train: list[Path]
    test: list[Path]
    saved: bool = False
    sites: bool = False


def find_files(path: Path, format: Format, where: str, split: bool = True) -> Found:
    """The files of the training and of the test rows, by name.

    A folder with files ``train*`` is split by file names (``test*``; ``dev*`` and ``val*`` are not
    used); in a folder of other files ``test*`` are the test rows, too; without ``split`` all files
    together are the rows. The root of a data set as hubs have it (``data/``, or folders ``train``
    and ``test``) and what ``Dataset.save_to_disk`` writes are read as well.

    Raises:
        UserError: ``path`` is missing, of an unknown format, or a folder without readable files.
    """
    path = path.expanduser()
    try:
        if path.is_file():
            return _one_file(path, format, where)
        if not path.is_dir():
            raise UserError(f"{where}: there is no file or folder '{path}'")
        return _in_folder(path, where, split)
    except OSError as error:
        raise UserError(f"{where}: '{path}' cannot be read ({error.strerror})") from error


def _one_file(path: Path, format: Format, where: str) -> Found:
    if format == "auto" and format_of(path) is None:
        raise UserError(
            f"{where}: the suffix of '{path}' tells no format; name it .csv, .tsv, .json, "
            ".jsonl or .parquet (.gz may follow), or set data.source.format"
        )
    return Found([path], [])


def _in_folder(path: Path, where: str, split: bool) -> Found:
    if saved := arrow.saved_splits(path):
        train = saved.get("train") or next(iter(saved.values()))
        test = saved.get("test") if split else None
        return Found([train], [test] if test else [], saved=True)
    files = _readable(path)
    if not files:
        return _in_folders_below(path, where, split)
    return _by_name(files, split)


def _by_name(files: list[Path], split: bool) -> Found:
    splits = {f: found[1] if (found := _SPLIT.match(f.name.lower())) else "" for f in files}
    train = [f for f in files if splits[f] == "train"]
    sites = [] if train else [f for f in files if not splits[f]]
    if not split or not (train or sites):
        return Found(files, [], sites=len(files) > 1 and not train)
    test = [f for f in files if splits[f] == "test"]
    return Found(train or sites, test, sites=len(sites) > 1)


def _in_folders_below(path: Path, where: str, split: bool) -> Found:
    """``data/``, ``train/`` and ``test/``, or the only folder that has files."""
    folders = [f for f in sorted(path.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    filled = {f.name.lower(): f for f in folders if _readable(f)}
    if "train" in filled:
        test = _readable(filled["test"]) if split and "test" in filled else []
        return Found(_readable(filled["train"]), test)
    if "data" in filled or len(filled) == 1:
        return _by_name(_readable(filled.get("data") or next(iter(filled.values()))), split)
    if filled:
        names = ", ".join(f"'{f.name}'" for f in filled.values())
        raise UserError(f"{where}: '{path}' has several folders with data ({names}); name one")
    raise UserError(
        f"{where}: the folder '{path}' holds no .csv, .tsv, .json, .jsonl or .parquet file"
    )


def _readable(folder: Path) -> list[Path]:
    about = ("dataset_info.json", "dataset_infos.json", "state.json")  # of a hub's data set
    return [
        f
        for f in sorted(folder.iterdir())
        if f.is_file() and format_of(f) and f.name not in about and not f.name.startswith(".")
    ]


@dataclass(frozen=True)
class Read:
    """Rows, what a record states of each file (name, size, digest), and what a user should know."""

    rows: Rows
    provenance: list[Json]
    notes: tuple[str, ...] = ()


def read_files(
    paths: Sequence[Path], format: Format, dialect: Dialect = AS_FOUND, name_files: bool = False
) -> Read:
    """All rows of these files. A column that only some files have is empty in the others.

    Args:
        dialect: of separated files.
        name_files: add the column ``file`` (names without suffixes), unless there is one.

    Raises:
        UserError: a file that is empty, damaged, not UTF-8 or malformed; names file and line.
    """
    read: list[tuple[Path, Rows]] = []
    provenance: list[Json] = []
    notes: list[str] = []
    for path in paths:
        try:
            rows, said, about = _read(path, format, dialect)
            if not rows.n or not rows.columns:
                raise UserError(f"{path}: the file has no rows")
            provenance.append({**_about(path), "rows": rows.n, **about})
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        read.append((path, rows))
        notes += said
    rows = joined(read)
    if name_files and FILE not in rows.columns:
        rows = rows.with_column(FILE, _file_names(read))
    return Read(rows, provenance, tuple(notes))


def read_saved(folders: Sequence[Path]) -> Read:
    """All rows of folders that ``Dataset.save_to_disk`` wrote."""
    rows, provenance = [], []
    for folder in folders:
        found, files = arrow.read_saved(folder)
        rows.append((folder, found))
        provenance += [_about(f) for f in files]
    return Read(joined(rows), provenance)


def joined(read: Sequence[tuple[Path, Rows]]) -> Rows:
    """The rows of several files, one after another; a column that does not fit is unreadable."""
    import pyarrow

    if len(read) == 1:
        return read[0][1]
    names = list(dict.fromkeys(name for _, rows in read for name in rows.columns))
    place = f"{read[0][0].parent}: the files {_listed([p for p, _ in read])} do not fit together"
    columns = {}
    for name in names:
        parts = [rows.columns.get(name, pyarrow.nulls(rows.n)) for _, rows in read]
        bad = next((p for p in parts if isinstance(p, Unreadable)), None)
        chunks = [c for p in parts for c in (p.chunks if hasattr(p, "chunks") else [p])]
        columns[name] = bad or merged(chunks, place, name)
    classes: dict[str, tuple[str, ...]] = {}
    for _, rows in read:
        classes |= rows.classes
    return Rows(sum(rows.n for _, rows in read), columns, classes)


def format_of(path: Path) -> Format | None:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _read(path: Path, format: Format, dialect: Dialect) -> tuple[Rows, list[str], Json]:
    with opened(path) as stream:
        start = stream.read(40).lstrip().lower()
    for beginning, what in _NO_TABLES.items():
        if start.startswith(beginning):
            raise UserError(f"{path}: {what}")
    actual = format_of(path) if format == "auto" else format
    if actual == "parquet":
        return arrow.read_parquet(path), [], {}
    if actual == "json":
        return jsonrows.read_json(path), [], {}
    return delimited.read_delimited(path, dialect, "\t" if actual == "tsv" else None)


def _about(path: Path) -> Json:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _file_names(read: Sequence[tuple[Path, Rows]]) -> object:
    import pyarrow

    names = [path.name.split(".", 1)[0] for path, _ in read]
    if len(set(names)) < len(names):
        names = [path.name for path, _ in read]
    parts = [pyarrow.repeat(name, rows.n) for name, (_, rows) in zip(names, read, strict=True)]
    return pyarrow.chunked_array(parts)


def _listed(paths: Sequence[Path]) -> str:
    shown = ", ".join(p.name for p in paths[:10])
    return shown + (f" and {len(paths) - 10} more" if len(paths) > 10 else "")
