"""What ``forefed predict`` writes: the rows that were asked about, each with its prediction.

A table has all columns of the input, then ``predicted`` and, where a model knows classes, the
probability of each of them (``p_CLASS``). A name that the input has already gets a number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forefed.core.errors import UserError, nearest
from forefed.core.files import write_atomic
from forefed.use.predict import Prediction

if TYPE_CHECKING:
    import pyarrow

Write = Callable[["pyarrow.Table"], bytes]


def format_of(format: str | None, output: Path | None) -> str | None:
    """The format that is asked for, by name or by the suffix of the file; None: neither says one.

    Raises:
        UserError: an unknown format or suffix, a file that exists, or Parquet without a file.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"--format {format}: {nearest(format, FORMATS)}")
    if output is None:
        if format == "parquet":
            raise UserError("--format parquet: this is no text; name a file (--output)")
        return format
    if output.exists():
        raise UserError(f"--output {output}: exists already; choose a new file")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder '{output.parent}'; make it first")
    known = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
    found = format or {**known, ".parquet": "parquet"}.get(output.suffix.lower())
    if found is None:
        raise UserError(
            f"--output {output}: the suffix tells no format; name it .csv, .jsonl or .parquet, or "
            "give --format"
        )
    return found


def with_predictions(
    rows: pyarrow.Table, predictions: Iterable[Prediction], classes: Sequence[str]
) -> pyarrow.Table:
    """The rows with their predictions, one each and in their order."""
    import pyarrow

    found = list(predictions)
    taken = list(rows.column_names)
    columns: dict[str, list[Any]] = {"predicted": [p.predicted for p in found]}
    for i, name in enumerate(classes):
        columns[_free(f"p_{name}", columns)] = [p.chances[i] for p in found]
    for name, values in columns.items():
        rows = rows.append_column(_free(name, taken), pyarrow.array(values))
    return rows


def write_predictions(table: pyarrow.Table, format: str, output: Path) -> None:
    """The whole file or none."""
    write_atomic(output, FORMATS[format](table))


def as_text(table: pyarrow.Table, format: str) -> str:
    return FORMATS[format](table).decode("utf-8")


def _free(name: str, taken: Iterable[str]) -> str:
    """``name``, or with the first number that makes it a new one."""
    names, number, found = set(taken), 2, name
    while found in names:
        found, number = f"{name}_{number}", number + 1
    return found


def _csv(table: pyarrow.Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow([_cell(value) for value in row.values()])
    return text.getvalue().encode("utf-8")


def _jsonl(table: pyarrow.Table) -> bytes:
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in _rows(table))
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _parquet(table: pyarrow.Table) -> bytes:
    from pyarrow import parquet

    data = io.BytesIO()
    parquet.write_table(table, data)
    return data.getvalue()


def _rows(table: pyarrow.Table) -> Iterable[dict[str, Any]]:
    for batch in table.to_batches():
        yield from batch.to_pylist()


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value


FORMATS: dict[str, Write] = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
