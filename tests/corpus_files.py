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


def many_classes(path: Path, table: dict[str, Any]) -> None:
    """``classes`` classes of ``each`` rows."""
    names = [f"c{i}" for i in range(table["classes"])] * table["each"]
    lines = [f"note number {i},{name}\n" for i, name in enumerate(names)]
    write(path, ("text,label\n" + "".join(lines)).encode())


def typed_parquet(path: Path, table: dict[str, Any]) -> None:
    """Twelve rows with ``labels`` whose ``names`` stand in the metadata, as hubs write them."""
    import pyarrow
    from pyarrow import parquet

    names = {"names": table["names"], "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": {"label": names}}})
    labels = [table["labels"][i % len(table["labels"])] for i in range(12)]
    columns = {"text": [f"note number {i}" for i in range(12)], "label": labels}
    made = pyarrow.table(columns).replace_schema_metadata({"huggingface": about})
    parquet.write_table(made, path)


def parquet_types(path: Path, table: dict[str, Any]) -> None:
    """Twelve rows with a column ``label`` (and one of ``text``) of another type."""
    import datetime
    from decimal import Decimal

    import pyarrow
    from pyarrow import parquet

    columns = {
        "binary": pyarrow.array([b"x", b"y"] * 6),
        "dictionary": pyarrow.array(["x", "y"] * 6).dictionary_encode(),
        "decimal": pyarrow.array([Decimal("1.00"), Decimal("0.00")] * 6),
        "date": pyarrow.array([datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)] * 6),
        "list": pyarrow.array([["x"], ["y"]] * 6),
        "uint64": pyarrow.array([2**63, 1] * 6, pyarrow.uint64()),
        "view": pyarrow.array(["x y", "y z"] * 6, pyarrow.string_view()),
        "plain": pyarrow.array(["x y", "y z"] * 6),
    }
    made = {"text": columns[table.get("text", "plain")], "label": columns[table["label"]]}
    parquet.write_table(pyarrow.table(made), path)


def saved(path: Path, table: dict[str, Any]) -> None:
    """What ``Dataset.save_to_disk`` of the library datasets writes: twelve typed rows."""
    import pyarrow

    path.mkdir(parents=True)
    names = {"names": ["z", "y"], "_type": "ClassLabel"}
    about = json.dumps({"info": {"features": {"label": names}}})
    columns = {"text": [f"note number {i}" for i in range(12)], "label": [0, 1, 1] * 4}
    made = pyarrow.table(columns).replace_schema_metadata({"huggingface": about})
    file = path / "data-00000-of-00001.arrow"
    with file.open("wb") as sink, pyarrow.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    if table.get("damaged"):
        file.write_bytes(file.read_bytes()[:300])
    state = {"_data_files": [{"filename": table.get("points_to", file.name)}]}
    if table.get("index"):
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text("{}")


def nested(path: Path, table: dict[str, Any]) -> None:
    """Rows of which the last one has a column of ``depth`` lists in one another."""
    good = '{"text": "a b", "label": 0}\n{"text": "b c", "label": 1}\n' * 3
    deep = "[" * table["depth"] + "]" * table["depth"]
    write(path, (good + f'{{"text": "a", "label": 0, "x": {deep}}}\n').encode())


def many_digits(path: Path, table: dict[str, Any]) -> None:
    """Rows of which the last one has a number of ``digits`` digits in ``column``."""
    good = '{"text": "a b", "label": 0}\n{"text": "b c", "label": 1}\n' * 3
    number = "9" * table["digits"]
    write(path, (good + f'{{"text": "a", "label": 0, "{table["column"]}": {number}}}\n').encode())


def wide(path: Path, table: dict[str, Any]) -> None:
    """As many different keys as rows."""
    lines = [json.dumps({"text": "a b", "label": i % 2, f"k{i}": 1}) for i in range(table["n"])]
    write(path, "\n".join(lines).encode())


def cut(path: Path, table: dict[str, Any]) -> None:
    """``rows``, of which the last ``bytes`` bytes are missing."""
    rows(path, table)
    path.write_bytes(path.read_bytes()[: -table["bytes"]])


def link(path: Path, table: dict[str, Any]) -> None:
    path.symlink_to(table["to"])


def long_pair(path: Path, table: dict[str, Any]) -> None:
    """Pairs of which one has two texts of ``2 * times`` words."""
    good = "a b,a c,x\na c,a d,y\na d,b e,y\n"
    long = "many words " * table["times"]
    write(path, f"text1,text2,label\n{good}{long},{long},x\n".encode())


def squad(path: Path, table: dict[str, Any]) -> None:
    """Twelve questions in SQuAD's own form."""
    for i in range(12):
        context = f"one{i // 4} two three"
        answers = {"text": ["two"], "answer_start": [context.index("two")]} if i % 3 else {}
        row = {"question": f"which {i}", "context": context, "answers": answers}
        row["answers"] = row["answers"] or {"text": [], "answer_start": []}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


MAKERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "rows": rows,
    "repeat": repeat,
    "bytes": raw,
    "folder": folder,
    "model": model,
    "many_classes": many_classes,
    "typed_parquet": typed_parquet,
    "parquet_types": parquet_types,
    "saved": saved,
    "nested": nested,
    "many_digits": many_digits,
    "wide": wide,
    "long_pair": long_pair,
    "squad": squad,
    "cut": cut,
    "link": link,
}
