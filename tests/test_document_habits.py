"""What stands beside the code: the version, the examples' rows, the site of the documentation."""

from __future__ import annotations

import pkgutil
import re
import runpy
import tomllib
from pathlib import Path

import forefed
from documents import ROOT


def test_the_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert f'__version__ = "{forefed.__version__}"' in source
    assert (ROOT / "src" / "forefed" / "py.typed").exists()


def test_the_invented_notes_are_what_their_program_makes(tmp_path: Path) -> None:
    notes = ROOT / "examples" / "notes"
    runpy.run_path(str(notes / "make.py"))["main"](tmp_path)
    for name in ("train.csv", "test.csv"):
        assert (tmp_path / name).read_bytes() == (notes / name).read_bytes()


def test_every_page_is_in_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    docs = ROOT / "docs"
    pages = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    assert not [page for page in pages if f" {page}" not in nav]


def test_what_the_reference_is_made_from_is_there() -> None:
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md"))
    names = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(names) > 15
    assert not [name for name in names if pkgutil.resolve_name(name) is None]


def test_every_row_of_the_faults_is_a_test_that_came_out() -> None:
    page = (ROOT / "docs" / "FAULTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(\w+)::(test_\w+)", page)
    texts = {p.stem: p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py")}
    assert len(rows) > 60 and "**failed**" not in page
    assert not [(file, name) for file, name in rows if f"def {name}(" not in texts[file]]
