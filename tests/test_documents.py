"""What the pages show works: their code runs, their settings are read, their commands exist."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import typer

import forefed.run
from copies import in_a_copy
from documents import LANGUAGES, ROOT, Block, blocks, commands, pages
from federation import World
from forefed import cli
from forefed.compare.show import study_of_options
from forefed.compare.study import is_study, study_of_file
from forefed.config.config import Config, configure
from forefed.core.settings import parse
from forefed.deploy.settings import SiteSettings

BLOCKS = [block for page in pages() for block in blocks(page)]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def of(language: str) -> Any:
    mine = [b for b in BLOCKS if b.language == language]
    return pytest.mark.parametrize("block", mine, ids=[b.place for b in mine])


def test_every_block_names_its_language() -> None:
    strange = [b.place for b in BLOCKS if b.language not in LANGUAGES]
    assert not strange, f"name one of {', '.join(sorted(LANGUAGES))}: {strange}"
    assert {b.language for b in BLOCKS} >= {"python", "toml", "console"}


def scripts() -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = defaultdict(list)
    for block in BLOCKS:
        if block.language == "python":
            found[block.page].append(block)
    return found


@pytest.mark.parametrize("page", scripts())
def test_python_runs(
    page: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but on a tiny model and few texts."""

    def small(*given: Any, sets: Any = (), **more: Any) -> Config:
        return configure(*given, sets=[*sets, *world.sets(tmp_path / "runs")], **more)

    monkeypatch.setattr(forefed.run, "configure", small)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in scripts()[page]:
        code = compile("\n" * block.line + block.text, block.place, "exec")
        if block.run:
            exec(code, names)


@of("toml")
def test_toml_is_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "page.toml"
    file.write_text(block.text, encoding="utf-8")
    tables = tomllib.loads(block.text)
    if is_study(file):
        study_of_file(file)
    elif tables.keys() <= SiteSettings.model_fields.keys() - Config.model_fields.keys():
        there = {"name": "a", "server": "a:1", "data": {"source": "pydocs"}}
        parse(SiteSettings, {**there, **tables})
    else:
        configure(file)


@of("console")
def test_commands_exist(block: Block) -> None:
    for program, *arguments in commands(block.text):
        if program == "forefed":
            check_command(arguments)
        elif program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {a for a in arguments if "=" not in a} <= set(targets), block.place
        elif program == "pip":
            check_install(arguments)
        elif program in ("python", "python3") and arguments[0].endswith(".py"):
            assert (ROOT / arguments[0]).is_file(), block.place


def check_command(arguments: list[str]) -> None:
    """Known commands, options and settings; files of this repository are read."""
    command: Any = typer.main.get_command(cli.app)
    context = typer.Context(command, info_name="forefed")
    while isinstance(command, typer.core.TyperGroup):
        name, *arguments = arguments
        if name.startswith("-"):
            assert name in {option for p in command.params for option in p.opts}, name
            return
        assert name in command.commands, f"forefed {name}"
        command = command.commands[name]
        context = typer.Context(command, parent=context, info_name=name)
    command.parse_args(context, arguments)
    given = context.params
    sets = given.get("sets") or ()
    if context.info_name == "compare":
        files = [ROOT / f for f in given["files"] or () if (ROOT / f).is_file()]
        assert len(files) == len(given["files"] or ())
        study_of_options(files, given["over"], given["tune"], None, sets, None)
    elif "sets" in given:
        file = given.get("config")
        configure(ROOT / file if file and (ROOT / file).is_file() else None, sets)


def check_install(arguments: list[str]) -> None:
    """What is installed from here has the extras that are asked for."""
    for argument in arguments:
        asked = re.fullmatch(r"(?:\.|forefed|[\w./-]*forefed)\[([\w,-]+)\]", argument)
        if asked:
            assert set(asked[1].split(",")) <= EXTRAS.keys(), argument


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_examples_are_read(file: Path) -> None:
    if is_study(file):
        study_of_file(file)
    else:
        configure(file)


def test_the_python_example_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = str(ROOT / "examples" / "from_python.py")
    monkeypatch.setattr(sys, "argv", [program, *world.sets(tmp_path), "data.limit=40"])
    said = in_a_copy(lambda: runpy.run_path(program, run_name="__main__"))
    assert re.search(r"accuracy [01]\.\d{3}; adapter in", said)
    assert (tmp_path / "from-python" / "adapter").is_dir()


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    command = typer.main.get_command(cli.app)
    assert isinstance(command, typer.core.TyperGroup)
    assert not [name for name in command.commands if f"`forefed {name}" not in page]


def test_pages_link_to_what_is_there() -> None:
    """Relative links of the pages lead to files of the repository or to pages that are made; those
    of the site's pages stay among them."""
    missing, site = [], ROOT / "docs"
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            made = target.startswith(("http", "mailto:")) or "results/" in target
            place = (page.parent / target).resolve()
            outside = page.is_relative_to(site) and not place.is_relative_to(site)
            if not made and (outside or not place.exists()):
                missing.append(f"{page.relative_to(ROOT)}: {target}")
    assert not missing


def test_every_public_name_is_itself_whatever_was_imported() -> None:
    """A package of the same name (forefed.run) must not stand in a function's place."""
    import forefed.compare
    import forefed.plan
    import forefed.report

    for name in forefed.__all__:
        assert callable(getattr(forefed, name)), name

    def anew(names: list[str]) -> None:
        for module in [m for m in sys.modules if m.partition(".")[0] == "forefed"]:
            del sys.modules[module]
        listed = ", ".join(names)
        exec(f"from forefed import {listed}\nassert all(map(callable, [{listed}]))", {})

    for names in (list(forefed.__all__), list(reversed(forefed.__all__))):
        in_a_copy(lambda names=names: anew(names))


def test_a_package_is_called_as_its_function(world: World, tmp_path: Path) -> None:
    import inspect

    from forefed import run

    assert inspect.signature(run) == inspect.signature(forefed.run.run)
    result = run(world.config(tmp_path, "rounds=1"))
    page = tmp_path / "page.html"
    forefed.report(result.folder, output=page)
    assert page.stat().st_size > 1000
    (one,) = forefed.predict(result.folder, ["w5"])
    assert one.predicted and sum(one.chances) == pytest.approx(1)
