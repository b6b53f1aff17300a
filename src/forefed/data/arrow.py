"""Parquet files and the folders that ``datasets.Dataset.save_to_disk`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError, several
from forefed.data.rows import Rows, Unreadable, class_names, first_line, printable
from forefed.data.streams import opened


def read_parquet(path: Path) -> Rows:
    """The columns of a Parquet file; one that is damaged matters to those who ask for it.

    Raises:
        UserError: no Parquet file, or one with two columns of one name.
    """
    import pyarrow
    from pyarrow import parquet

    faults = (pyarrow.ArrowException, OSError, ValueError)
    columns: dict[str, Any] = {}
    try:
        file = parquet.ParquetFile(_source(path))
        schema = file.schema_arrow
    except faults as error:
        raise UserError(f"{path}: not a Parquet file ({first_line(error)})") from error
    if len(set(schema.names)) < len(schema.names):
        double = next(n for n in schema.names if schema.names.count(n) > 1)
        raise UserError(f"{path}: two columns have the same name: {several([double])}")
    for name in schema.names:
        try:
            columns[name] = file.read(columns=[name]).column(0)
        except (*faults, IndexError) as error:
            reason = f"{path}: column {printable(name)} cannot be read ({first_line(error)})"
            columns[name] = Unreadable(reason)
    return Rows(file.metadata.num_rows, columns, class_names(schema.metadata))


def _source(path: Path) -> Any:
    import pyarrow

    if path.suffix.lower() != ".gz":
        return str(path)
    with opened(path) as stream:
        return pyarrow.BufferReader(stream.read())


def saved_splits(folder: Path) -> dict[str, Path]:
    """The data sets in a folder of ``save_to_disk`` by split; empty: it is none."""
    if (folder / "state.json").is_file():
        return {"train": folder}
    if (folder / "dataset_dict.json").is_file():
        return {f.parent.name: f.parent for f in sorted(folder.glob("*/state.json"))}
    return {}


def read_saved(folder: Path) -> tuple[Rows, list[Path]]:
    """One saved data set, and its files.

    Raises:
        UserError: a damaged folder, or one with an index that is not written out.
    """
    import pyarrow

    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / about["filename"] for about in state["_data_files"]]
        if state.get("_indices_data_files"):
            raise UserError(
                f"{folder}: saved with an index of rows; call flatten_indices() before saving"
            )
        tables = []
        for file in files:
            if file.parent != folder:
                raise UserError(f"{folder}: state.json names a file outside of the folder")
            with pyarrow.OSFile(str(file)) as source:
                tables.append(pyarrow.ipc.open_stream(source).read_all())
        return Rows.of_table(pyarrow.concat_tables(tables, promote_options="permissive")), files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: damaged ({first_line(error)}); save it again") from error
