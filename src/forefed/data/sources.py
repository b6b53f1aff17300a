"""Where the rows come from: the embedded docstrings, files, or the Hugging Face hub."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from forefed.core.errors import UserError, nearest
from forefed.core.settings import Choice, Registry
from forefed.core.types import Json
from forefed.data import pydocs
from forefed.data.files import Format, find_files, read_files

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Table:
    """Rows as they were read. ``natural_id`` names the column of their owners, where one is known;
    ``test`` is None where the source has no test split of its own."""

    rows: datasets.Dataset
    test: datasets.Dataset | None
    natural_id: str | None
    provenance: Json


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
        import datasets

        docs = pydocs.read_docstrings(cache_dir=cache_dir)
        if not docs:
            raise UserError(
                "data.source: this interpreter came without the source files of its standard "
                'library; give a file instead (data.source.kind = "files")'
            )
        rows = datasets.Dataset.from_dict(
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
    """A file (also .gz), or a folder."""
    test: Path | None = None
    """A file or a folder of test rows; None: the folder's test* files, if it has train* too."""
    format: Format = "auto"
    """"auto": by the file's suffix."""

    def load(self, cache_dir: Path | None = None) -> Table:
        import datasets
        from datasets.table import InMemoryTable

        train, test = find_files(self.path, self.format, "data.source.path")
        if self.test is not None:
            test = find_files(self.test, self.format, "data.source.test", split=False)[0]
        rows, provenance = read_files(train, self.format)
        tables = [datasets.Dataset(InMemoryTable(rows)), None]
        if test:
            test_rows, test_provenance = read_files(test, self.format)
            tables[1] = datasets.Dataset(InMemoryTable(test_rows))
            provenance += test_provenance
        return Table(tables[0], tables[1], None, {"kind": self.kind, "files": provenance})


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
        import datasets

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
        rows = splits[self.train]
        provenance = {
            "kind": self.kind,
            "name": self.name,
            "config": self.config,
            "revision": self.revision,
            "fingerprint": rows._fingerprint,
            "rows": len(rows),
        }
        return Table(rows, splits.get(self.test) if self.test else None, None, provenance)


SOURCES: Registry[Source] = Registry("data.source", [PyDocs, Files, Hub])
