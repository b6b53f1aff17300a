"""Comparisons: the grid, pairing, failures, going on after a kill, and mistakes."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands import Command, mistake, options, plain
from federation import World, snapshot
from forefed.compare import cell as process_of_a_cell
from forefed.compare import compare, schedule, study_of_configs, study_of_file
from forefed.compare.grid import Cell, cells_of, conditions_of, make_cell
from forefed.compare.tune import tuning_cells
from forefed.core.errors import UserError
from forefed.run import run
from forefed.run.build import build
from forefed.run.record import read_json
from studies import study_file, tiny_study


def test_cells_of_the_grid(world: World, tmp_path: Path) -> None:
    study = tiny_study(
        world,
        tmp_path,
        seeds=2,
        datasets={"few": {"data": {"limit": 20}}, "all": {}},
        over={"partition": {"clients": [5, 6]}, "cohort": [2]},
    )
    cells = cells_of(study, {("few", "spry"): (("client.optimiser.lr", 0.5),)})
    assert len(cells) == 2 * 2 * 2 * 2 and len({cell.folder for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8
    one = next(c for c in cells if (c.dataset, c.method) == ("few", "spry"))
    assert one.name == "spry-few-partition.clients_5-cohort_2-client.optimiser.lr_0.5-seed0"
    config = one.config
    assert config.client.optimiser.lr == 0.5 and config.data.limit == 20 and config.cohort == 2
    assert config.strategy.name == "spry" and config.partition.clients == 5


def test_one_seed_is_one_federation_for_all_methods(world: World, tmp_path: Path) -> None:
    """Same clients, same cohorts, same batches in the same order; another seed has others."""
    sets = ("partition={kind='dirichlet', clients=6}", "client.epochs=2")
    study = tiny_study(world, tmp_path, *sets, seeds=2)
    by_seed: dict[int, list[list]] = {0: [], 1: []}
    for cell in cells_of(study, {}):
        federation = build(cell.config)
        population, state = federation.data.population, federation.start()
        plans = [federation.star.plan(replace(state, round=done)) for done in range(4)]
        batches = [
            [b.tolist() for b in federation.trainer.batches(order, population.client(client))]
            for plan in plans
            for client, order in plan.items()
        ]
        clients = population.summary()["digest"]
        by_seed[cell.seed].append([clients, [list(plan) for plan in plans], batches])
        by_seed[cell.seed][-1].append(federation.data.provenance["tokens"])
    for first, second in by_seed.values():
        assert first == second
    (a, *_), (b, *_) = by_seed.values()
    assert all(x != y for x, y in zip(a[:3], b[:3], strict=True))
    assert a[3] == b[3]  # every seed is tested on the same rows


def test_methods_that_do_not_pair_are_named(world: World, tmp_path: Path) -> None:
    methods = {"three": {"cohort": 3}, "four": {"cohort": 4}, "iid": {"partition": {"clients": 5}}}
    study = tiny_study(world, tmp_path, methods=methods, seeds=1)
    for cell in cells_of(study, {}):
        run(cell.config)
    compare(study)
    said = (study.folder / "results.md").read_text()
    assert "Not paired with three" in said
    assert "four has other cohorts" in said and "iid has other clients' data" in said


# The schedule.


def test_a_failing_cell_does_not_stop_the_others(
    world: World, tmp_path: Path, fake_cells: None, forefed_command: Command
) -> None:
    rates = {"fine": 0.1, "unlucky": 13, "bug": 17, "last": 0.3}
    methods = {m: {"client": {"optimiser": {"lr": lr}}} for m, lr in rates.items()}
    file = study_file(tmp_path, world, methods)
    said = forefed_command("compare", file, "--seeds", 1, "--jobs", 1)
    mistake(said, "2 of the runs failed", "tries them again")
    assert "an unlucky number" in plain(said.out) and "RuntimeError: a bug" in plain(said.out)
    text = (tmp_path / "study" / "results.md").read_text()
    assert "100.0 %" in text and "80.0 %" in text
    assert "| unlucky-seed0 | client.optimiser.lr: an unlucky number |" in text
    before = snapshot(tmp_path / "study" / "runs" / "fine-seed0")
    again = forefed_command("compare", file, "--seeds", 1)
    assert again.status == 2 and "2 finished already" in plain(again.out)
    assert snapshot(tmp_path / "study" / "runs" / "fine-seed0") == before


def test_killed_in_the_middle_and_called_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished cell stays as it is, the other one goes on from its checkpoint.

    Closing the pipe is what the system does when the parent is killed.
    """
    methods = {"fedavg": {"strategy": "fedavg"}, "spry": {"strategy": "spry", "rounds": 16}}
    study = tiny_study(world, tmp_path, methods=methods, seeds=1)
    first, second = cells_of(study, {})
    run(first.config)
    before = snapshot(first.folder)
    job = schedule.start(second, schedule.Slot(), tmp_path / "logs")
    wait_until(lambda: job.process.poll() is not None or schedule.rounds_done(second) >= 2)
    assert job.process.stdin is not None
    job.process.stdin.close()
    assert job.process.wait(120) == 1, job.log.read_text()
    assert not second.finished and 2 <= schedule.rounds_done(second) < 16
    monkeypatch.setattr(sys, "stdin", io.StringIO(second.config.model_dump_json()))
    monkeypatch.setattr(process_of_a_cell, "_end_with_parent", lambda: None)
    assert process_of_a_cell.main() == 0  # in this process, which has loaded everything
    assert not compare(study).failed
    assert snapshot(first.folder) == before
    whole = run(cells_of(study.model_copy(update={"name": "whole"}), {})[1].config)
    assert read_json(second.folder / "summary.json")["digest"] == whole.summary["digest"]


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_ends_every_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, os; print(os.getpid(), flush=True); sys.stdin.read()"
    monkeypatch.setattr(schedule, "COMMAND", [sys.executable, "-S", "-c", code])

    class Interrupt(schedule.Watch):
        def rounds(self, cell: Cell, done: int) -> None:
            if len(list((tmp_path / "logs").glob("*.log"))) == 2 and all(pids()):
                raise KeyboardInterrupt

    def pids() -> list[str]:
        return [p.read_text().strip() for p in (tmp_path / "logs").glob("*.log")]

    cells = cells_of(tiny_study(world, tmp_path, seeds=1), {})
    with pytest.raises(KeyboardInterrupt):
        schedule.run_cells(cells, 2, tmp_path / "logs", Interrupt())
    for pid in pids():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


# Mistakes.


def test_settings_changed_since_a_cell_ran(world: World, tmp_path: Path, fake_cells: None) -> None:
    compare(tiny_study(world, tmp_path, seeds=1))
    with pytest.raises(UserError, match=r"rounds \(2 before, 3 now\); remove the folder"):
        compare(tiny_study(world, tmp_path, "rounds=3", seeds=1))


MISTAKES = {
    "an unknown key": ("seed = 3", ["seed: unknown setting", "seeds"]),
    "no method": ("[methods]", ["name at least one"]),
    "an unknown reference": ("reference = 'b'\n[methods.a]", ["no method 'b'"]),
    "an unknown setting": ("[methods.a]\nrouns = 3", ["a-seed0", "rouns: unknown setting"]),
    "no strategy": ("[methods.a]\nstrategy = 'sprie'", ["a-seed0", "'sprie' is unknown"]),
    "what cannot work": (
        "[base]\npartition.clients = 4\npartition.kind = 'iid'\n[methods.a]\ncohort = 5",
        ["a-seed0", "cohort = 5 is larger"],
    ),
    "the seed of a method": ("[methods.a]\nseed = 3", ["methods.a.seed", "the study decides"]),
    "a grid without lists": ("[over]\ncohort = 3\n[methods.a]", ["cohort: give a list"]),
    "tuning without lists": ("[methods.a.tune]\nserver.lr = 1", ["server.lr: give a list"]),
    "equal values": ("over.cohort = [2, 2]\n[methods.a]", ["two cells", "a-cohort_2-seed0"]),
    "no seeds": ("seeds = 0\n[methods.a]", ["at least one seed"]),
    "a seed twice": ("seeds = [1, 1]\n[methods.a]", ["each once"]),
    "a missing variable": ("base.model = '$NOT_SET_ANYWHERE/x'\n[methods.a]", ["NOT_SET_ANYWHERE"]),
    "no TOML": ("[methods", ["not valid TOML"]),
}


@pytest.mark.parametrize("which", MISTAKES)
def test_a_mistake_in_a_study(which: str, tmp_path: Path, forefed_command: Command) -> None:
    text, words = MISTAKES[which]
    file = tmp_path / "study.toml"
    file.write_text(f"out = '{tmp_path}'\n{text}\n" if "methods" in text else text)
    if which == "an unknown key":
        file.write_text(f"{text}\n[methods.a]\n")
    mistake(forefed_command("compare", file), *words)
    assert not (tmp_path / "study").exists()


def test_mistakes_on_the_command_line(tmp_path: Path, forefed_command: Command) -> None:
    study, config = tmp_path / "study.toml", tmp_path / "config.toml"
    study.write_text("[methods.a]\n")
    config.write_text("name = 'a'\n")
    mistake(forefed_command("compare", study, config), "give it alone")
    mistake(forefed_command("compare", study, "--over", "cohort=1"), "[over]")
    mistake(forefed_command("compare", config, config), "a second method named 'a'")
    mistake(forefed_command("compare", config, "--over", "cohort"), "key=value,value")
    mistake(forefed_command("compare", tmp_path / "none.toml"), "no such configuration file")
    mistake(forefed_command("compare", config, "--jobs", 0, "--name", "x/y"), "name")


# The command line.


def test_the_example_can_be_run() -> None:
    study = study_of_file(Path(__file__).parents[1] / "examples" / "study.toml")
    assert len(cells_of(study, {})) == 3 * 2 * 2 and len(tuning_cells(study)) == 6


def test_strategies_on_the_command_line_are_methods(tmp_path: Path) -> None:
    study = study_of_configs((), ["strategy.name=spry,fedavg", "cohort=2,3"], ["rounds=4"])
    assert list(study.methods) == ["spry", "fedavg"] and study.over == {"cohort": (2, 3)}
    assert all(raw["rounds"] == 4 for raw in study.methods.values())
    file = tmp_path / "mine.toml"
    file.write_text("rounds = 5\n")
    named = study_of_configs([file], ["strategy=spry,fedavg"])
    assert list(named.methods) == ["spry", "fedavg"]
    assert named.methods["spry"] == {"rounds": 5, "strategy": {"name": "spry"}}


def test_the_environment_fills_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[base]\ndata.source.path = "${SOME_DATA}/x"\n[methods.a]\n')
    monkeypatch.setenv("SOME_DATA", "/there")
    study = study_of_file(file, ["rounds=9"])
    assert study.base == {"data": {"source": {"path": "/there/x"}}, "rounds": 9}
    assert study.name == "s"


def test_compare_prints_and_writes_results(
    world: World, tmp_path: Path, forefed_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [item for item in world.sets(Path("x")) if not item.startswith("out=")]
    grid = ["--over", "strategy.name=fedavg,spry", "--over", "cohort=2,3", "--seeds", 2]
    study = study_of_configs((), ["strategy.name=fedavg,spry", "cohort=2,3"], sets, seeds=2)
    for cell in cells_of(study, {}):
        run(cell.config)
    said = forefed_command("compare", *grid, *options(sets))
    assert said.status == 0, said.err
    out = plain(said.out)
    assert "8 cells, 8 finished already" in out and "final accuracy" in out
    folder = tmp_path / "compare" / "study"
    page = (folder / "results.html").read_text()
    assert "<script" not in page and "http" not in page and page.count("<svg") >= 6
    text = (folder / "results.md").read_text()
    for title in ("Results", "Where each method loses", "Quality under a budget"):
        assert f"## {title}" in text and f"<h2>{title}</h2>" in page
    assert "Cost to a target" in text and "Robustness" in text and str(tmp_path) not in text
    results = read_json(folder / "results.json")["results"]
    assert len(results) == 4 and "Paired: with one seed" in text and "of 4 pairs" in text
    for result in results:
        folder_of = [
            c.folder
            for c in cells_of(study, {})
            if c.method == result["method"] and dict(c.condition) == result["condition"]
        ]
        finals = [read_json(f / "summary.json")["final"]["accuracy"] for f in folder_of]
        assert result["quality"]["mean"] == pytest.approx(np.mean(finals))
        sent = [read_json(f / "summary.json")["totals"]["bytes_up"] for f in folder_of]
        assert result["costs"]["bytes_up"] == pytest.approx(np.mean(sent))


def test_the_committed_studies_use_no_former_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FOREFED_DATA", "/nowhere")
    studies = Path(__file__).parent.parent / "benchmarks" / "studies"
    for file in sorted(studies.glob("*.toml")):
        study = study_of_file(file)
        dataset, condition = next(iter(study.datasets or ("",))), conditions_of(study)[0]
        for method in study.methods:
            make_cell(study, dataset, method, condition, study.seeds[0], ())
        assert not caplog.records, (file, caplog.text)
