"""The command line: what every command does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forefed
from commands import Command, mistake, options, plain
from federation import CLASSES, World, snapshot
from forefed.config.catalogue import LISTS as REGISTRIES
from forefed.run.record import read_lines
from forefed.strategies import STRATEGIES


def test_run_tells_and_keeps(forefed_command: Command, world: World, tmp_path: Path) -> None:
    arguments = ["run", *options(world.sets(tmp_path, "name=mine"))]
    said = forefed_command(*arguments)
    assert said.status == 0, said.err
    out = plain(said.out)
    assert "mine: spry" in out and "6 clients, 3 per round" in out
    assert "texts empty: 1" in out and "texts truncated: 1" in out
    assert "slopes emulated by backward passes" in out
    assert json.loads((tmp_path / "mine" / "environment.json").read_text())["emulated"] is True
    assert "round 1/2" in out and "round 2/2" in out and "most frequent class" in out
    tested = [x for x in read_lines(tmp_path / "mine", "evaluations.jsonl") if x["split"] == "test"]
    lines = re.findall(r"round (\d+)/2 ", out)
    assert [int(n) for n in lines] == [x["round"] for x in tested]  # a line each, to a pipe
    before = snapshot(tmp_path / "mine")
    again = forefed_command(*arguments)
    assert again.status == 0 and "finished already; nothing was done" in plain(again.out)
    own = forefed_command("run", tmp_path / "mine")  # a run's folder stands for its settings
    assert own.status == 0 and "finished already" in plain(own.out)
    assert snapshot(tmp_path / "mine") == before


def test_run_with_a_file(forefed_command: Command, world: World, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f"""
        name = "from-file"
        out = '{tmp_path}'
        rounds = 7
        cohort = 2
        strategy = "fedavg"
        model.name = '{world.bert}'
        [data]
        source = {{kind = "files", path = '{world.texts}'}}
        max_length = 12
        [partition]
        kind = "iid"
        clients = 4
        [client]
        max_steps = 1
        """,
        encoding="utf-8",
    )
    said = forefed_command("run", file, "--set", "rounds=1")  # what is set wins
    assert said.status == 0, said.err
    config = json.loads((tmp_path / "from-file" / "config.json").read_text())
    assert config["rounds"] == 1 and config["cohort"] == 2
    assert config["strategy"]["name"] == "fedavg" and config["adapter"]["kind"] == "lora"


def test_resume(forefed_command: Command, finished: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(finished["unfinished"], tmp_path / "unfinished")
    place = ["--set", f"out='{tmp_path}'"]
    refused = forefed_command("run", tmp_path / "unfinished", *place)
    assert refused.status == 2 and "--resume" in refused.err
    moved = (tmp_path / "unfinished").rename(tmp_path / "moved")
    said = forefed_command("run", moved, "--resume")
    assert said.status == 0, said.err
    assert "going on after round 1" in plain(said.out) and "round 1/2" not in plain(said.out)
    assert (moved / "summary.json").exists()  # the folder that was named, wherever it was made
    assert not (finished["unfinished"] / "summary.json").exists()
    assert not (tmp_path / "unfinished").exists()


def test_report(forefed_command: Command, finished: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    both = [finished["classification"], finished["pairs"]]
    said = forefed_command("report", *both, "--output", page)
    assert said.status == 0, said.err
    html = page.read_text(encoding="utf-8")
    assert html.lstrip().lower().startswith("<!doctype html") and "classification" in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "page.html" in said.out


def test_report_lies_in_the_run(
    forefed_command: Command, finished: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished["causal_lm"], tmp_path / "lm")
    assert forefed_command("report", folder).status == 0
    assert (folder / "report.html").stat().st_size > 1000


def test_export(forefed_command: Command, finished: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "new" / "adapter", tmp_path / "empty"):
        said = forefed_command("export", finished["classification"], target)
        assert said.status == 0, said.err
        source = finished["classification"] / "adapter"
        assert sorted(p.name for p in target.iterdir()) == sorted(p.name for p in source.iterdir())
        name = "adapter_model.safetensors"
        assert (target / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b"{}"),
        ("adapter_config.json", b"\xff"),
        ("adapter_model.safetensors", b"\0" * 9),
        ("adapter_model.safetensors", None),
    ],
)
def test_a_damaged_adapter_is_not_exported(
    name: str,
    content: bytes | None,
    forefed_command: Command,
    finished: dict[str, Path],
    tmp_path: Path,
) -> None:
    run = shutil.copytree(finished["classification"], tmp_path / "run")
    file = run / "adapter" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    mistake(forefed_command("export", run, tmp_path / "new"), "damaged", name, "--resume")
    assert not (tmp_path / "new").exists()


def test_predict_a_class(forefed_command: Command, finished: dict[str, Path]) -> None:
    said = forefed_command("predict", finished["classification"], "w5 w6", "", "w7 " * 300)
    assert said.status == 0, said.err
    answers = re.findall(rf"({'|'.join(CLASSES)}) \((0\.\d\d|1\.00)\)", said.out)
    assert len(answers) == 3


def test_predict_pairs(forefed_command: Command, finished: dict[str, Path]) -> None:
    said = forefed_command("predict", finished["pairs"], "w5", "w6", "w7", "w8")
    assert said.status == 0, said.err
    assert len(re.findall(r"(True|False) \(", said.out)) == 2
    odd = forefed_command("predict", finished["pairs"], "w5", "w6", "w7")
    assert odd.status == 2 and "two texts per example" in odd.err


def test_predict_a_continuation(forefed_command: Command, finished: dict[str, Path]) -> None:
    said = forefed_command("predict", finished["causal_lm"], "w5 w6", "w30")
    assert said.status == 0, said.err
    assert len(said.out.strip().splitlines()) >= 2 and re.search(r"w\d+ w\d+", said.out)


LISTS = "strategies engines models sources tasks partitions adapters assigns codecs optimisers"


@pytest.mark.parametrize("what", [*LISTS.split(), "aggregators", "modifiers"])
def test_list(what: str, forefed_command: Command) -> None:
    said = forefed_command("list", what)
    assert said.status == 0, said.err
    names = {"strategies": list(STRATEGIES), "models": ["minilm"]}.get(what) or REGISTRIES[
        what
    ].kinds()
    for name in names:
        assert re.search(rf"^\s*{name}\b", said.out, re.MULTILINE), name


def test_check_shows_the_plan(forefed_command: Command) -> None:
    said = forefed_command("check", "--set", "strategy=fedavg", "--set", "rounds=33")
    assert said.status == 0, said.err
    out = plain(said.out)
    assert "backprop" in out and "33" in out and "work together" in out


def test_help_mentions_every_command(forefed_command: Command) -> None:
    said = forefed_command("--help")
    assert said.status == 0
    for command in (
        "run",
        "demo",
        "compare",
        "report",
        "export",
        "replay",
        "predict",
        "list",
        "check",
    ):
        assert re.search(rf"\b{command}\b", said.out), command
        assert forefed_command(command, "--help").status == 0


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from forefed import cli; sys.argv = ['forefed', '--help']\n"
        "try: cli.main()\n"
        "finally: print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_a_bug_is_called_one_and_keeps_its_trace_in_a_file(
    forefed_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    import forefed.config.catalogue

    def broken(what: str, verbose: bool) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(forefed.config.catalogue, "choices_tables", broken)
    said = forefed_command("list", "engines")
    (kept,) = tmp_path.iterdir()
    assert said.status == 70 and "Traceback" not in said.err + said.out
    assert said.err.count("error:") == 1 and str(kept) in said.err.replace("\n", "")
    assert "a fault of Forefed" in said.err and "report" in said.err
    assert "RuntimeError: a bug" in kept.read_text() and kept.stat().st_mode & 0o077 == 0


def test_the_package_offers_what_it_names() -> None:
    assert all(getattr(forefed, name) for name in forefed.__all__)
    with pytest.raises(AttributeError):
        _ = forefed.no_such_name
