"""No release is forgotten, none is counted twice, and everybody who reads a run is told."""

from __future__ import annotations

import importlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from commands import Command
from faults import fault
from federation import Interrupted, StopAfter, World, lines
from forefed.core.errors import UserError
from forefed.privacy import LEDGER, Ledger, Release
from forefed.report import report
from forefed.run import run
from kills import killed_at, points, written

run_module = importlib.import_module("forefed.run.run")
PRIVATE = [
    *("strategy=fedavg", "rounds=4", "cohort=4", "evaluate.every=2"),
    'modifiers=[{kind="dp_client", noise_multiplier=0.8, clip=0.5, delta=1e-3}]',
]


def release(round: int, tag: str = "a") -> Release:
    return Release(unit="client", sigma=1.0, adversary="all", round=round, tag=tag)


def test_the_ledger_grows_and_knows_what_was_made_again(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path)
    ledger.enter([release(1), release(2)])
    ledger.enter([release(2), release(2, "other sums"), release(3)])
    again = Ledger.of(tmp_path)
    assert again.made == ledger.made and len(again.made) == 4
    again.enter([release(1)])
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 4


def test_a_torn_line_was_no_release_and_a_damaged_ledger_is_no_private_run(tmp_path: Path) -> None:
    Ledger.of(tmp_path).enter([release(1)])
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    torn = Ledger.of(tmp_path)
    torn.enter([release(2)])
    assert [r.round for r in Ledger.of(tmp_path).made] == [1, 2]
    path.write_bytes(whole[:40] + b"\n" + whole)
    with pytest.raises(UserError, match=r"privacy\.jsonl, line 1: damaged; .* what was spent"):
        Ledger.of(tmp_path)


@pytest.mark.parametrize("moment", ["amid the answers", "before the checkpoint"])
def test_a_kill_spends_nothing_twice_and_forgets_nothing(
    moment: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.run(tmp_path, *PRIVATE, "name=whole")
    config = world.config(tmp_path, *PRIVATE, "name=killed")
    if moment == "amid the answers":
        with pytest.raises(Interrupted):
            run(config, watcher=StopAfter(2, outcomes=2))
    else:
        honest = run_module.save_checkpoint

        def kill(folder: Path, config: Any, state: Any, clients: Any) -> None:
            # whatever a checkpoint holds was entered before
            assert [r.round for r in Ledger.of(folder).made] == [*range(1, state.round + 1)]
            if state.round == 3:
                raise Interrupted
            honest(folder, config, state, clients)

        monkeypatch.setattr(run_module, "save_checkpoint", kill)
        with pytest.raises(Interrupted):
            run(config)
        monkeypatch.setattr(run_module, "save_checkpoint", honest)
        assert [r.round for r in Ledger.of(config.folder).made] == [1, 2, 3]
    resumed = run(config, resume=True)
    assert (resumed.folder / LEDGER).read_bytes() == (whole.folder / LEDGER).read_bytes()
    assert resumed.summary["digest"] == whole.summary["digest"]
    assert resumed.summary["privacy"] == whole.summary["privacy"]


NOISY_START = (
    "start={kind='closed_form', noise_multiplier=2.0, solver='ridge', regularisation=0.1, "
    "radius=3.0, unit='client', max_rows=8, delta=1e-3}"
)


@fault(
    "the process killed before or after any flush or renaming",
    "a run under 'dp_client' whose start has noise",
    "whatever can be seen was entered in the ledger before; after --resume every release once, "
    "same bits",
)
def test_a_kill_between_any_two_writes_spends_nothing_twice_and_forgets_nothing(
    world: World, tmp_path: Path
) -> None:
    sets = [*PRIVATE, "rounds=2", "evaluate.every=1", "model.pooling=mean", NOISY_START]
    with written() as calls:
        whole = world.run(tmp_path, *sets, "name=whole")
    ledger = (whole.folder / LEDGER).read_bytes()
    assert [r.round for r in Ledger.of(whole.folder).made] == [0, 1, 2]
    entered = 2 * calls.index("start.safetensors")
    reached = 0
    for point in sorted({*points(2 * len(calls), 1), entered - 1, entered}):
        config = world.config(tmp_path, *sets, f"name=killed-{point}")
        if not killed_at(point, partial(run, config)):
            shutil.rmtree(config.folder)
            continue
        reached += 1
        made = [r.round for r in Ledger.of(config.folder).made]
        assert made == [0, 1, 2][: len(made)]
        there = (config.folder / "rounds.jsonl").exists()
        seen = [x["round"] for x in lines(config.folder, "rounds.jsonl")] if there else []
        assert {*seen, *([0] if (config.folder / "start.safetensors").exists() else [])} <= {*made}
        again = run(config, resume=(config.folder / "config.json").exists())
        assert (again.folder / LEDGER).read_bytes() == ledger, point
        assert again.summary["digest"] == whole.summary["digest"], point
    assert reached >= 2


def test_everybody_is_told_mechanism_unit_budget_adversary_and_cap(
    world: World, tmp_path: Path, forefed_command: Command
) -> None:
    result = world.run(tmp_path, *PRIVATE)
    (spent,) = result.summary["privacy"]
    # four Gaussian sums at sigma 0.8: mu = 2 / 0.8
    assert (spent["unit"], spent["mechanism"], spent["delta"]) == ("client", "Gaussian", 1e-3)
    assert spent["epsilon"] == pytest.approx(10.20, abs=0.01) and spent["cap"] is None
    parts = ("10.2, 0.001)-differential privacy of every client", "Gaussian noise, multiplier 0.8")
    parts += ("takes part in every round", "against everyone who sees the models", "rehearsal")
    assert all(part in spent["text"] for part in parts)
    rounds = lines(result.folder, "rounds.jsonl")
    costs = [line["privacy"][0]["epsilon"] for line in rounds]
    assert costs == sorted(costs) and costs[-1] == spent["epsilon"]
    assert all(line["loss"] is None and line["contributions"] == [] for line in rounds)
    card = (result.folder / "adapter" / "README.md").read_text()
    assert spent["text"] in card
    page = tmp_path / "page.html"
    report(result.folder, output=page)
    assert "differential privacy of every client" in page.read_text()
    sets = [x for s in world.sets(tmp_path, *PRIVATE, "name=told") for x in ("--set", s)]
    assert "the whole run will cost (10.2, 0.001)" in forefed_command("check", *sets).out
    said = forefed_command("run", *sets).out
    assert f"spent: {spent['text']}" in said and "the whole run will cost (10.2, 0.001)" in said


def test_a_run_that_is_not_private_has_no_ledger_and_says_nothing(
    world: World, tmp_path: Path
) -> None:
    result = world.run(tmp_path, "strategy=fedavg", "rounds=1")
    assert not (result.folder / LEDGER).exists() and "privacy" not in result.summary
    assert "rivacy" not in json.dumps(result.summary)
    assert "rivacy" not in (result.folder / "adapter" / "README.md").read_text()


def test_the_noise_for_a_target_without_a_run(tmp_path: Path, forefed_command: Command) -> None:
    file = tmp_path / "a.toml"
    private = 'modifiers = [{kind = "dp_client", noise_multiplier = 9}]'
    file.write_text(f'strategy = "fedavg"\nrounds = 4\n{private}\n')
    said = forefed_command("plan", str(file), "--epsilon", "4.377").out
    assert "noise_multiplier = 2.00" in said and "(4.38, 1e-05)-differential privacy" in said
    for options, why in (
        (["minilm", "--epsilon", "4"], "give a run's configuration"),
        ([str(file), "--epsilon", "-1"], "--epsilon -1: a number above 0"),
        ([str(file), "--delta", "0.1"], "--delta is for --epsilon"),
    ):
        assert why in forefed_command("plan", *options).err
    file.write_text('strategy = "fedavg"\n')
    assert "is not private" in forefed_command("plan", str(file), "--epsilon", "4").err
