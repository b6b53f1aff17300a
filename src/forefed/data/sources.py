"""Where the rows come from: the embedded docstrings, files, or the Hugging Face hub."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from forefed.core.errors import UserError, nearest
from forefed.core.settings import Choice, Registry
from forefed.core.types import Json
from forefed.data import pydocs
from forefed.data.delimited import Dialect, Quoting
from forefed.data.files import FILE, Format, Read, find_files, read_files, read_saved
from forefed.data.rows import Rows


@dataclass(frozen=True)
class Table:
    """Rows as they were read. ``natural_id`` names the column of their owners, where one is known;
    ``test`` is None where the source has no test split of its own; ``notes`` are sentences for the
    user."""

    rows: Rows
    test: Rows | None
    natural_id: str | None
    provenance: Json
    notes: tuple[str, ...] = ()


class Source(Choice):
    """Base of the sources."""

    @abstractmethod
    def load(self, cache_dir: Path | None = None) -> Table:
        """All rows.

        Raises:
            UserError: nothing there, or not readable; names the file and the line.
        """


class PyDocs(Source):
    """Docstrings of Python's standard library: 10 areas, modules as owners, no download."""

    kind: Literal["pydocs"] = "pydocs"
    source: ClassVar[str] = "the running interpreter"

    def load(self, cache_dir: Path | None = None) -> Table:
        docs = pydocs.read_docstrings(cache_dir=cache_dir)
        if not docs:
            raise UserError(
                "data.source: this interpreter came without the source files of its standard "
                'library; give a file instead (data.source.kind = "files")'
            )
        rows = Rows.of(
            {
                "text": [d.text for d in docs],
                "label": [d.area for d in docs],
                "module": [d.module for d in docs],
            }
        )
        return Table(rows, None, "module", {"kind": self.kind, **pydocs.provenance(docs)})


class Files(Source):
    """A CSV, JSON, JSON-lines or Parquet file, or a folder of them (train*, test*: splits)."""

    kind: Literal["files"] = "files"
    path: Path
    """A file (also .gz), or a folder: of files, of one file per site, of ``save_to_disk``, or the
    root of a data set as hubs have it."""
    test: Path | None = None
    """A file or a folder of test rows; None: the folder's test* files."""
    format: Format = "auto"
    """"auto": by the file's suffix."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Between the fields of a CSV file; None: the comma, or what the first line has instead."""
    quoting: Quoting = "auto"
    """"no": quotes are plain characters. "auto": they are around fields, but not in a .tsv file
    where a quoted field would hold tabs and line ends."""

    @field_validator("delimiter")
    @classmethod
    def _no_line_end(cls, value: str | None) -> str | None:
        if value is not None and value in '\r\n" \\':
            raise ValueError("fields cannot be separated by a quote, a blank or a line end")
        return value

    def load(self, cache_dir: Path | None = None) -> Table:
        found = find_files(self.path, self.format, "data.source.path")
        train = self._read(found.train, found.saved, found.sites)
        test = self._read(found.test, found.saved) if found.test else None
        if self.test is not None:
            given = find_files(self.test, self.format, "data.source.test", split=False)
            test = self._read(given.train, given.saved)
        provenance = [*train.provenance, *(test.provenance if test else ())]
        return Table(
            train.rows,
            test.rows if test else None,
            FILE if found.sites and FILE in train.rows.columns else None,
            {"kind": self.kind, "files": provenance},
            (*train.notes, *(test.notes if test else ())),
        )

    def _read(self, paths: list[Path], saved: bool, sites: bool = False) -> Read:
        if saved:
            return read_saved(paths)
        return read_files(paths, self.format, Dialect(self.delimiter, self.quoting), sites)


class Hub(Source):
    """A data set of the Hugging Face hub; the only source that may use the network."""

    kind: Literal["hub"] = "hub"
    source: ClassVar[str] = "huggingface.co/datasets"
    name: str
    """For example "org/name"."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    train: str = "train"
    test: str | None = "test"
    """Split names. A data set without the test split gives some of its rows (data.test_fraction);
    with None it always does."""
    revision: str | None = None
    """A commit of the data set, so that a run can be repeated."""

    def load(self, cache_dir: Path | None = None) -> Table:
        try:
            import datasets
        except ImportError:
            raise UserError(
                "data.source: the hub is read by the package datasets; install forefed[hub]"
            ) from None
        try:
            splits = datasets.load_dataset(self.name, self.config, revision=self.revision)
        except (OSError, ValueError) as error:  # offline, unknown or gated: all derive from these
            reason = str(error).strip().split("\n", 1)[0][:200]
            raise UserError(
                f"data.source: '{self.name}' cannot be loaded from the hub ({reason}). Check the "
                "name and data.source.config; without a network, run once while connected (it "
                'stays in the cache) or give a file (data.source.kind = "files")'
            ) from error
        if self.train not in splits:
            raise UserError(
                f"data.source.train: '{self.name}' has no split '{self.train}': "
                + nearest(self.train, splits)
            )
        if self.test not in splits and self.test and "test" in self.model_fields_set:
            raise UserError(
                f"data.source.test: '{self.name}' has no split '{self.test}': "
                + nearest(self.test, splits)
            )
        rows, test = splits[self.train], splits.get(self.test) if self.test else None
        provenance = {
            "kind": self.kind,
            "name": self.name,
            "config": self.config,
            "revision": self.revision,
            "fingerprint": rows._fingerprint,
            "rows": len(rows),
        }
        tested = None if test is None else _of_dataset(test)
        return Table(_of_dataset(rows), tested, None, provenance)


def _of_dataset(rows: Any) -> Rows:
    found = Rows.of_table(rows.with_format("arrow")[:])
    names = {c: tuple(f.names) for c, f in rows.features.items() if hasattr(f, "names")}
    return replace(found, classes=names)


SOURCES: Registry[Source] = Registry("data.source", [PyDocs, Files, Hub])
