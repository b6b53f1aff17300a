"""The run's folder: its name, what is written in it, and every way in which it can be damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Command, mistake, options
from federation import Interrupted, StopAfter, World, snapshot
from forefed.compare.grid import cell_name
from forefed.core import boundary, files
from forefed.core.errors import REMEDIES, Stopped, UserError, of_system
from forefed.core.names import LONGEST, check_name
from forefed.run import configure, run
from forefed.run.checkpoint import FILE
from forefed.run.start_result import TENSORS

# Names.

NO_NAMES = (
    *("", ".", "..", "...", "a/b", "a\\b", "/", "~", "-x", ".cache", ".hidden", "a b", "a\n", "é"),
    *("x" * (LONGEST + 1), "x" * 300, "nul", "CON", "com1.txt", "end.", "a:b", "a*", "${HOME}"),
)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_is_one_component_and_never_special(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        check_name(name)
    with pytest.raises(UserError, match="name"):
        configure(base={"name": name, "out": str(tmp_path)})


@pytest.mark.parametrize("name", ["run", "a.b-c_d", "0", "x" * LONGEST, "_1", "contract", "a..b"])
def test_other_names_are_kept_as_they_are(name: str) -> None:
    assert configure(base={"name": name}).name == name


def test_long_names_of_cells_are_cut_and_stay_different() -> None:
    long = [("x" * 60 + str(i), i) for i in range(3)]
    names = {cell_name("", "spry", ((key, value),) * 3, (), 0) for key, value in long}
    assert len(names) == 3 and all(check_name(name) and len(name) <= LONGEST for name in names)


@pytest.mark.parametrize("where", ["name", "methods", "datasets"])
def test_a_study_writes_below_its_folder_only(
    where: str, forefed_command: Command, tmp_path: Path
) -> None:
    table = {"name": 'name = ".."\n[methods.a]\nrounds = 1\n'}
    table["methods"] = '[methods.".."]\nrounds = 1\n'
    table["datasets"] = '[methods.a]\nrounds = 1\n[datasets.".."]\nseed = 1\n'
    study = tmp_path / "study" / "study.toml"
    study.parent.mkdir()
    study.write_text(f"out = '{tmp_path / 'out'}'\n{table[where]}")
    before = snapshot(tmp_path)
    mistake(forefed_command("compare", study), "name")
    assert snapshot(tmp_path) == before


def test_a_run_writes_nothing_outside_its_folder_but_the_cache(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world.run(tmp_path / "out", "name=mine")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".cache", "mine"]


# Damage. An unfinished and a finished run, each with one thing broken, for every command.


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    config = world.config(out, "name=half", "rounds=3")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(2))
    begun = world.config(out, "name=begun", "rounds=3", "start=closed_form", "model.pooling=mean")
    with pytest.raises(Interrupted):
        run(begun, watcher=StopAfter(2))
    whole = world.run(out, "name=whole").folder
    return {"half": config.folder, "begun": begun.folder, "whole": whole}


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def line(name: str, number: int, **change: object) -> Callable[[Path], None]:
    """One line of a record file with other values."""

    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[number] = json.dumps({**json.loads(lines[number]), **change})
        (folder / name).write_text("\n".join(lines) + "\n")

    return damage


def folder_at(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        (folder / name / "mine").write_text("precious")

    return damage


DEEP = "[" * 100_000
RESUME: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "summary.json empty": ("whole", text("summary.json", ""), ["summary.json", "--resume"]),
    "summary.json a list": ("whole", text("summary.json", "[1]"), ["summary.json"]),
    "summary.json of pairs": ("whole", text("summary.json", '[["a", 1]]'), ["summary.json"]),
    "summary.json empty table": ("whole", text("summary.json", "{}"), ["summary.json"]),
    "summary.json deep": ("whole", text("summary.json", DEEP), ["summary.json"]),
    "summary.json a folder": ("whole", folder_at("summary.json"), ["summary.json"]),
    "config.json empty": ("half", text("config.json", ""), ["config.json", "damaged"]),
    "config.json a number": ("half", text("config.json", "3"), ["config.json", "damaged"]),
    "config.json deep": ("half", text("config.json", DEEP), ["config.json", "damaged"]),
    "config.json long number": ("half", text("config.json", '{"seed": ' + "9" * 5000 + "}"), []),
    "rounds: a string": ("half", line("rounds.jsonl", 0, round="one"), ["rounds.jsonl, line 1"]),
    "rounds: minus five": ("half", line("rounds.jsonl", 1, round=-5), ["rounds.jsonl, line 2"]),
    "rounds: a table": ("half", line("rounds.jsonl", 0, round={}), ["rounds.jsonl, line 1"]),
    "rounds: no bytes": ("half", line("rounds.jsonl", 0, bytes_up="x"), ["rounds.jsonl, line 1"]),
    "rounds: no seconds": ("half", line("rounds.jsonl", 0, seconds=3), ["rounds.jsonl, line 1"]),
    "rounds: twice": ("half", line("rounds.jsonl", 1, round=1), ["rounds.jsonl", "round 2"]),
    "rounds gone": ("half", gone("rounds.jsonl"), ["rounds.jsonl", "round 1 is missing"]),
    "rounds cut in the middle": (
        "half",
        lambda f: (f / "rounds.jsonl").write_text('{"ro\n' + (f / "rounds.jsonl").read_text()),
        ["rounds.jsonl, line 1", "damaged"],
    ),
    "evaluations gone": ("half", gone("evaluations.jsonl"), ["evaluations.jsonl", "round 0"]),
    "evaluations: no split": (
        "half",
        line("evaluations.jsonl", 0, split=None),
        ["evaluations.jsonl, line 1"],
    ),
    "lock a folder": ("half", folder_at(".lock"), [".lock", "folder"]),
    "rounds a folder": ("half", folder_at("rounds.jsonl"), ["rounds.jsonl"]),
    "checkpoint a folder": ("half", folder_at(FILE), [FILE]),
    "environment gone": ("half", gone("environment.json"), ["environment.json"]),
    "environment a list": ("half", text("environment.json", "[]"), ["environment.json"]),
    "start cut": ("begun", lambda f: (f / TENSORS).write_bytes(b"\0" * 9), [TENSORS, "damaged"]),
    "start's line gone": ("begun", gone("start.json"), ["start.json"]),
    "adapter is something else": ("half", folder_at("adapter"), ["adapter", "move it away"]),
}


@pytest.mark.parametrize("what", RESUME)
def test_a_damaged_folder_is_one_sentence_and_stays_as_it_is(
    what: str, runs: dict[str, Path], forefed_command: Command, tmp_path: Path
) -> None:
    which, damage, said = RESUME[what]
    folder = shutil.copytree(runs[which], tmp_path / which)
    damage(folder)
    before = snapshot(folder)
    place = ["--set", f"out='{tmp_path}'"] if "config.json" not in what else []
    answer = forefed_command("run", folder, "--resume", *place)
    mistake(answer, *said)
    assert "\n" not in answer.err.strip()
    assert snapshot(folder) == before


def test_an_empty_adapter_folder_is_in_nobodys_way(
    runs: dict[str, Path], forefed_command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs["half"], tmp_path / "half")
    (folder / "adapter").mkdir()
    said = forefed_command("run", folder, "--resume", "--set", f"out='{tmp_path}'")
    assert said.status == 0 and (folder / "adapter" / "adapter_config.json").exists()


USE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "partition empty": (text("partition.json", ""), ["partition.json"]),
    "partition without labels": (text("partition.json", "{}"), ["partition.json", "labels"]),
    "labels of another type": (text("partition.json", '{"labels": 3}'), ["partition.json"]),
    "config of another version": (text("config.json", '{"nobody": 1}'), ["nobody"]),
    "checkpoint cut": (lambda f: (f / FILE).write_bytes(b"\0" * 9), [FILE, "damaged"]),
}


@pytest.mark.parametrize("what", USE)
def test_predict_from_a_damaged_folder(
    what: str, runs: dict[str, Path], forefed_command: Command, tmp_path: Path
) -> None:
    damage, said = USE[what]
    folder = shutil.copytree(runs["whole"], tmp_path / "whole")
    damage(folder)
    mistake(forefed_command("predict", folder, "w5 w6"), *said)


def test_out_that_is_a_file(world: World, forefed_command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    said = forefed_command("run", *options(world.sets(tmp_path / "out")))
    mistake(said, str(tmp_path / "out"), "a file and no folder")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("kind", ["lora", "tinylora"])
def test_a_rank_that_no_matrix_has_is_refused_at_once(
    kind: str, world: World, forefed_command: Command, tmp_path: Path
) -> None:
    more = [f"adapter={kind}", "adapter.r=1000000"]
    mistake(forefed_command("run", *options(world.sets(tmp_path, *more))), "adapter.r = 1000000")


def test_a_comparison_that_is_stopped_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, forefed_command: Command, tmp_path: Path
) -> None:
    import forefed.compare.show

    def stopping(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(forefed.compare.show, "compare", stopping)
    study = tmp_path / "study.toml"
    study.write_text("[methods.a]\nrounds = 1\n")
    said = forefed_command("compare", study)
    assert said.status == 130 and "finished cells and rounds are kept" in said.err


# What the system refuses.


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
def test_what_the_system_refuses_is_one_sentence(
    number: int,
    world: World,
    forefed_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "runs" / "run" / "x"))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    said = forefed_command("run", *options(world.sets(tmp_path / "runs")))
    mistake(said, str(tmp_path / "runs"), os.strerror(number), REMEDIES[number].split(";")[0])
    assert "Traceback" not in said.err and "\n" not in said.err.strip()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("here: this"), 2, "error: here: this"),
        (Stopped("stopped; two rounds"), 130, "stopped; two rounds"),
        (PermissionError(errno.EACCES, "no", "/x"), 2, "/x: no: you may not"),
        (MemoryError(), 2, "memory is full"),
        (BrokenPipeError(), 141, ""),
        (ValueError("odd \x1b[31m"), 70, "a fault of Forefed"),
        (OSError("without a number"), 70, "a fault of Forefed"),
        (RecursionError(), 70, "a fault of Forefed"),
    ],
)
def test_every_error_has_its_status_and_sentence(
    error: Exception,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(boundary, "_nobody_reads", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found, said = boundary.explain(error)
    assert found == status and words in said and "\x1b" not in said
    assert bool(list(tmp_path.iterdir())) == (status == 70)


def test_what_the_system_refuses_without_a_place_is_a_fault_of_ours() -> None:
    assert of_system(OSError(errno.EACCES, "no")) is None
    assert "here" in str(of_system(OSError(errno.EACCES, "no"), "here"))
    assert of_system(OSError(errno.ECHILD, "no", "/x")) is None


# Elsewhere than on Linux.


def test_the_library_imports_without_unix() -> None:
    """As on Windows: no fcntl, no pwd."""
    code = """
import sys
for name in ("fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
import forefed, forefed.run, forefed.run.progress, forefed.cli
from forefed import Callback, configure, run
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_lock_is_held_by_one_process(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from forefed.core.files import locked
with locked(Path({str(tmp_path / "lock")!r}), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="busy"), files.locked(tmp_path / "lock", "busy"):
            pass
        other.kill()
    with files.locked(tmp_path / "lock", "busy"):
        pass


def test_a_run_of_a_version_with_other_settings_is_used_with_a_note(
    runs: dict[str, Path], forefed_command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs["whole"], tmp_path / "whole")
    asked = ("predict", folder, "w5 w6")
    before = forefed_command(*asked)
    assert before.status == 0 and not before.err
    config = json.loads((folder / "config.json").read_text())
    config["evaluate"]["every"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    after = forefed_command(*asked)
    assert after.out == before.out and "another version of forefed" in after.err
    for name in ("summary.json", "checkpoint-best.safetensors"):
        (folder / name).unlink(missing_ok=True)
    said = forefed_command("run", folder, "--resume", "--set", f"out='{tmp_path}'")
    mistake(said, "other settings", "version of forefed")
