"""Reading: docstrings, files of every format, and every fault with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from forefed.core.errors import UserError
from forefed.data import pydocs
from forefed.data.rows import Rows
from forefed.data.sources import SOURCES, Files, Hub

ROWS = [{"text": "one, two", "label": "x"}, {"text": 'a "b"\nc', "label": "y"}]


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_rows(rows: Rows) -> list[dict[str, object]]:
    columns = {name: rows[name] for name in rows.column_names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


JSONL = "\n".join(map(json.dumps, ROWS))
CSV = 'text,label\n"one, two",x\n"a ""b""\nc",y\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", JSONL),
        ("t.jsonl.gz", JSONL + "\n\n"),
        ("t.json", JSONL),
        ("T.JSON", json.dumps(ROWS)),
        ("t.csv", CSV),
        ("t.csv.gz", "\ufeff" + CSV),
        ("t.tsv", 'text\tlabel\none, two\tx\n"a ""b""\nc"\ty\n'),
    ],
)
def test_formats_read_alike(tmp_path: Path, name: str, content: str) -> None:
    table = Files(path=write(tmp_path / name, content)).load()
    assert as_rows(table.rows) == ROWS
    assert table.test is None and table.natural_id is None
    (about,) = table.provenance["files"]
    assert (about["name"], about["rows"]) == (name, 2)
    assert str(tmp_path) not in json.dumps(table.provenance)


def test_parquet_and_format_setting(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    assert as_rows(Files(path=tmp_path / "x.parquet").load().rows) == ROWS
    assert as_rows(Files(path=write(tmp_path / "x.txt", CSV), format="csv").load().rows) == ROWS


def test_folder_with_splits_and_without(tmp_path: Path) -> None:
    for name, n in {"train-0": 1, "train-1": 2, "test": 4, "dev": 8}.items():
        write(tmp_path / f"{name}.jsonl", '{"text": "a"}\n' * n)
    write(tmp_path / "README.md", "not data")
    table = Files(path=tmp_path).load()
    assert len(table.rows) == 3 and table.test is not None and len(table.test) == 4
    explicit = Files(path=tmp_path, test=tmp_path / "dev.jsonl").load()
    assert explicit.test is not None and len(explicit.test) == 8
    for name in ("train-0", "train-1"):
        (tmp_path / f"{name}.jsonl").unlink()
    rest = Files(path=tmp_path).load()
    assert len(rest.rows) == 12 and rest.test is None


def test_long_field_of_a_csv_file(tmp_path: Path) -> None:
    long = "x" * 200_000
    table = Files(path=write(tmp_path / "t.csv", f"text,label\n{long},a\n")).load()
    assert table.rows["text"] == [long]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", "t.jsonl: the file is empty"),
        ("t.jsonl.gz", "", "t.jsonl.gz: the file is empty"),
        ("t.csv", "text,label\n", "t.csv: the file has no rows"),
        ("t.json", "[]", "t.json: the file has no rows"),
        ("t.jsonl", '{"text": "a"}\n\n{"text": \n', "t.jsonl, line 3: not JSON"),
        ("t.json", '[{"a": 1},\n {"a" 2}]', "t.json, line 2: not JSON"),
        ("t.jsonl", '{"text": "a"}\n"b"\n', "t.jsonl, line 2: expected an object"),
        ("t.json", "[1]", "t.json, row 1: expected an object"),
        ("t.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "t.jsonl, line 2: not UTF-8 (byte 0xe9 at"),
        ("t.csv", "text,label\na,b\nc\n", "t.csv, line 3: 1 fields, but line 1 names 2"),
        ("t.csv", "text,label\na,b,c\n", "t.csv, line 2: 3 fields"),
        ("t.csv", 'text,label\n"a,b\n', "t.csv, line 2: malformed"),
        ("t.csv", "text,text\na,b\n", "two columns have the same name"),
        ("t.jsonl", '{"label": "a"}\n{"label": 1}', "t.jsonl: column 'label' cannot be read"),
        ("t.jsonl", '{"text": "\\ud800"}', "t.jsonl: column 'text' cannot be read"),
        ("t.parquet", "text", "t.parquet: not a Parquet file"),
        ("t.doc", "text", "t.doc' tells no format"),
    ],
)
def test_faulty_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        rows = Files(path=write(tmp_path / name, content)).load().rows
        rows[rows.column_names[0]]
    assert message in str(error.value)


def test_missing_damaged_and_unfitting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source\.path: there is no file or folder '.*no'"):
        Files(path=tmp_path / "no").load()
    with pytest.raises(UserError, match=r"holds no \.csv"):
        Files(path=tmp_path).load()
    whole = gzip.compress(JSONL.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: damaged gzip file"):
        Files(path=tmp_path).load()
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    with pytest.raises(UserError, match=r"data\.source\.test: there is no file"):
        Files(path=tmp_path, test=tmp_path / "no.csv").load()
    write(tmp_path / "b.jsonl", '{"text": [1]}')
    with pytest.raises(UserError, match="do not fit together"):
        Files(path=tmp_path).load().rows["text"]


def test_hub_without_a_network_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"'nobody/nothing' cannot be loaded .*kind = \"files\""):
        Hub(name="nobody/nothing").load()


def test_registry() -> None:
    assert SOURCES.kinds() == ["pydocs", "files", "hub"]
    with pytest.raises(UserError, match="did you mean 'files'"):
        SOURCES.parse("file")


def library(root: Path) -> Path:
    long = "This sentence has more than forty characters, as it should."
    for name, other in {"json/decoder.py": "d", "random.py": "r", "enum.py": "e"}.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'def f():\n  """{long}"""\nclass C:\n  """{other} {long}"""\n')
    (root / "random.py").with_name("decimal.py").write_text("print 'another dialect'")
    return root


def test_docstrings_have_areas_modules_and_no_duplicates(tmp_path: Path) -> None:
    found = pydocs.read_docstrings(library(tmp_path))
    assert [(d.text[0], d.area, d.module) for d in found] == [
        ("T", "markup", "json.decoder"),
        ("d", "markup", "json.decoder"),
        ("r", "numbers", "random"),
    ]


def test_docstrings_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    root, cache = library(tmp_path / "lib"), tmp_path / "cache"
    found = pydocs.read_docstrings(root, cache)
    (stored,) = cache.iterdir()
    calls: list[Path] = []
    parse = pydocs._docstrings_of
    monkeypatch.setattr(pydocs, "_docstrings_of", lambda p: calls.append(p) or parse(p))
    assert pydocs.read_docstrings(root, cache) == found and not calls
    stored.write_text(stored.read_text().replace("forty", "fifty"))
    assert pydocs.read_docstrings(root, cache) == found and calls
    calls.clear()
    (root / "random.py").write_text("")
    assert len(pydocs.read_docstrings(root, cache)) == 2 and calls


@pytest.mark.slow
def test_the_interpreters_own_docstrings() -> None:
    found = pydocs.read_docstrings()
    areas = [d.area for d in found]
    assert len(found) > 4000 and set(areas) == set(pydocs.AREAS)
    assert max(areas.count(a) for a in pydocs.AREAS) < 0.25 * len(found)
