"""What is written stays after a power cut, in the order that makes it so; damaged lines."""

from __future__ import annotations

import ast
import json
import os
import stat
from pathlib import Path

import pytest

import forefed
from forefed.core.errors import UserError
from forefed.core.files import append, read_table_lines, rename_folder, write_atomic

WINDOWS_LACKS = {"fcntl", "grp", "pwd", "resource", "termios"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the system is told to keep, in order."""
    heard: list[str] = []
    flush, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        heard.append(f"{kind} {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        flush(handle)

    def replace(source: Path, target: Path) -> None:
        heard.append(f"rename {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return heard


def test_a_file_is_flushed_before_and_its_folder_after_the_rename(
    tmp_path: Path, told: list[str]
) -> None:
    write_atomic(tmp_path / "one", b"x")
    assert told[0].startswith("file .one.")
    assert told[1:] == ["rename one", f"folder {tmp_path.name}"]


def test_the_folder_of_an_appended_file_is_flushed_once(tmp_path: Path, told: list[str]) -> None:
    for _ in range(2):
        append(tmp_path / "lines", b"x")
    assert told == ["file lines", f"folder {tmp_path.name}", "file lines"]
    assert (tmp_path / "lines").read_bytes() == b"xx"


def test_a_folder_is_renamed_after_all_that_it_holds(tmp_path: Path, told: list[str]) -> None:
    building = tmp_path / ".new"
    (building / "sub").mkdir(parents=True)
    (building / "sub" / "deep").write_text("x")
    rename_folder(building, tmp_path / "new")
    assert sorted(told[:3]) == ["file deep", "folder .new", "folder sub"]
    assert told[3:] == ["rename new", f"folder {tmp_path.name}"]


def test_every_rename_of_the_library_is_durable() -> None:
    """``os.replace`` elsewhere is only for what may be lost: a former folder put aside."""
    source = Path(forefed.__file__).parent
    found = {
        str(path.relative_to(source)): path.read_text().count("os.replace(")
        for path in source.rglob("*.py")
        if "os.replace(" in path.read_text()
    }
    assert found == {"core/files.py": 2, "models/export.py": 1}


def test_modules_import_nothing_that_windows_lacks() -> None:
    for path in Path(forefed.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not WINDOWS_LACKS & {*names}, path


def test_lines_that_do_not_fit_are_damaged_and_a_torn_end_is_not(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n\n{"n": 2}\n{"n"')
    assert read_table_lines(path, "x", lambda line: "n" in line) == ([{"n": 1}, {"n": 2}], True)
    with pytest.raises(UserError, match=r"line 3: damaged .*; restore it"):
        read_table_lines(path, "restore it", lambda line: line["n"] == 1)
    path.write_text(json.dumps([1]) + "\n{}\n")
    with pytest.raises(UserError, match="line 1: damaged; restore it"):
        read_table_lines(path, "restore it")
