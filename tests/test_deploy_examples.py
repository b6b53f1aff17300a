"""The files of examples/deploy say what exists: commands, settings, versions."""

from __future__ import annotations

import ast
import configparser
import csv
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from forefed import cli
from forefed.config.compat import check
from forefed.run import configure

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "deploy"


def parse_command(words: list[str]) -> None:
    """A command line of ours: its command and its options exist."""
    command = typer.main.get_command(cli.app)
    context = command.make_context("forefed", list(words), resilient_parsing=True)
    rest = words
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
        context = command.make_context(rest[0] if rest else "", list(rest), parent=context)


def unit_of(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("name", ["forefed-server.service", "forefed-site@.service"])
def test_a_unit_starts_a_command_that_exists_and_writes_its_folder_only(name):
    unit = unit_of(EXAMPLES / name)
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/forefed")
    parse_command(words)
    assert unit["Service"]["ReadWritePaths"] == words[-1]
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    assert unit["Service"]["User"] != "root"


def test_the_container_starts_a_site_and_publishes_no_port():
    service = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]["site"]
    assert service["command"][0] == "forefed" and "ports" not in service
    parse_command(service["command"][1:])
    places = [volume.split(":")[1] for volume in service["volumes"]]
    assert service["command"][-1] in places


def test_the_examples_run_can_be_started_and_is_the_one_in_the_docs():
    text = (EXAMPLES / "run.toml").read_text()
    check(configure(EXAMPLES / "run.toml"), deployed=True)
    shown = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    assert tomllib.loads(text) in [tomllib.loads(block) for block in shown]


def test_every_command_of_the_docs_exists():
    found = 0
    for page in (ROOT / "docs" / "deploy.md", ROOT / "README.md"):
        for block in page.read_text().split("```")[1::2]:
            if block.startswith("toml"):
                continue
            for line in re.findall(r"\bforefed ((?:server|site) [^&;\n]*)", block):
                said = re.sub(r"\$\{[^}]*\}|\$\w+", "9201", line.split(" #")[0])  # the shell's
                parse_command(shlex.split(said))
                found += 1
    assert found >= 12


def test_the_examples_rows_are_of_four_areas_and_nobodys_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_rows.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "make_rows.py"), run_name="__main__")
    labels = set(configure(EXAMPLES / "run.toml").data.task.labels)
    texts: list[str] = []
    for name in ("north", "south", "west", "test"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) >= 200 and {row["label"] for row in rows} <= labels
        texts += [row["text"] for row in rows]
    assert len(texts) == len(set(texts))


PACKAGES = {"sklearn": "scikit-learn"}
"""Names of packages that are not those of their modules."""


def test_what_is_imported_is_declared_and_pinned_at_both_ends():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {normal(x) for group in [project["dependencies"], *extras.values()] for x in group}
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"forefed", "pydantic_core", "click", ""}
    assert {PACKAGES.get(x, normal(x)) for x in foreign} - declared == set()
    core = {normal(x) for x in project["dependencies"]}
    assert not core & {"flwr", "flwr-datasets", "datasets"}  # nobody pays for Flower's caps
    for file in ("constraints.txt", "constraints-min.txt"):
        pins = {normal(x) for x in (ROOT / file).read_text().splitlines() if "==" in x}
        assert core - pins == set(), file


def test_the_older_constraints_are_the_declared_lower_ends():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints-min.txt").read_text().splitlines()
    )
    pinned = {normal(name): version for name, version in pins.items()}
    for text in project["dependencies"]:
        low = re.search(r">=([0-9.]+)", text)
        assert low and pinned[normal(text)].startswith(low[1].removesuffix(".0")), text


def normal(text: str) -> str:
    return re.split(r"[\[<>=!~ ;]", text, maxsplit=1)[0].lower().replace("_", "-")
