"""What did not train is not called finished, keeps its last good parameters, exports nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from commands import Command, mistake, options
from federation import World, lines
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.metrics import BITS_PER_BYTE
from forefed.run import Result, run
from forefed.run.checkpoint import BEST, FILE, load_checkpoint
from forefed.run.health import DIVERGED, NOT_TRAINED, UNHEARD, Ending, Health
from forefed.use.export import export_adapter

SGD = ["strategy=fedavg", "client.optimiser=sgd", "rounds=5"]


def test_sgd_at_1e6_ends_as_diverged(
    forefed_command: Command, world: World, tmp_path: Path
) -> None:
    sets = [*SGD, "client.optimiser.lr=1e6", "name=far"]
    said = forefed_command("run", *options(world.sets(tmp_path, *sets)))
    folder = tmp_path / "far"
    assert said.status == 3
    assert "diverged" in said.out and "lower client.optimiser.lr" in said.out
    assert not (folder / "adapter").exists()
    again = forefed_command("run", folder, "--resume")
    assert again.status == 3 and "nothing was done" in again.out
    mistake(forefed_command("export", folder, tmp_path / "new"), "diverged", "--force")
    assert not (tmp_path / "new").exists()


def test_adamw_at_1e5_keeps_what_was_good(world: World, tmp_path: Path) -> None:
    """The rate rises after two good rounds, by a server that then multiplies what it gets."""
    from forefed.federation.server import Server

    config = world.config(tmp_path, *SGD, "client.optimiser.lr=0.1")
    real = Server.move

    def move(self, state, change):
        moved, params = real(self, state, change)
        if state.round >= 2:
            params = {n: x * math.inf for n, x in params.items()}
        return moved, params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "move", move)
        result = run(config)
    assert result.summary["status"] == DIVERGED and "round 3" in result.summary["reason"]
    assert result.status == 3 and result.summary["rounds"] == 3
    kept = load_checkpoint(result.folder, config, __import__("torch").device("cpu"))
    assert kept is not None and kept.state.round == 2 and trees.all_finite(kept.state.params)
    export_adapter(result.folder, tmp_path / "new", force=True)
    exported = tmp_path / "new" / "adapter_model.safetensors"
    assert trees.all_finite(__import__("safetensors.torch").torch.load_file(exported))


def test_the_best_parameters_are_kept(world: World, tmp_path: Path) -> None:
    import torch

    config = world.config(tmp_path, *SGD, "client.optimiser.lr=0.5", "client.max_steps=8")
    result = run(config)
    best = result.summary["best"]
    if best["round"] == 0:
        assert not (result.folder / BEST).exists()
        return
    kept = load_checkpoint(result.folder, config, torch.device("cpu"), BEST)
    assert kept is not None and kept.state.round == best["round"]
    export_adapter(result.folder, tmp_path / "best", best=True)
    assert (tmp_path / "best" / "adapter_model.safetensors").exists()


def test_nobody_heard(forefed_command: Command, world: World, tmp_path: Path) -> None:
    sets = ["faults.crash=1.0", "name=silent"]
    said = forefed_command("run", *options(world.sets(tmp_path, *sets)))
    assert said.status == 3 and "unheard" in said.out and "6 crash" in said.out
    assert not (tmp_path / "silent" / "adapter").exists()


@pytest.mark.parametrize("what", ["inf", "nan", "-inf"])
def test_no_setting_is_infinite(what: str, forefed_command: Command) -> None:
    said = forefed_command("check", "--set", f"client.optimiser.lr={what}")
    mistake(said, "client.optimiser.lr", "finite")


def test_clients_of_one_class_are_no_divergence(world: World, tmp_path: Path) -> None:
    """Each round hears clients of other classes, at a high rate: losses jump, the run goes on."""
    skewed = ["partition=dirichlet", "partition.alpha=0.05", "partition.clients=6"]
    some = ["strategy=fedavg", "rounds=6", "cohort=2", "client.optimiser=sgd"]
    result = world.run(tmp_path, *skewed, *some, "client.optimiser.lr=1.0", "client.max_steps=6")
    assert result.summary["status"] == "finished"


# The verdict itself, on records written by hand.

FIRST = {"round": 0, "split": "test", "loss": 1.0, "accuracy": 0.3, "n": 10}


def rounds(*losses: float | None, norm: float | None = 1.0, **more: object) -> Health:
    health = Health(1.0).tested(FIRST)
    for number, loss in enumerate(losses, 1):
        line = {"round": number, "loss": loss, "norm": norm, "replies": 2, "steps": 2, **more}
        health = health.after(line)
    return health


def ending(health: Health, moved: bool = True) -> str:
    found = health.diverged() or health.at_the_end(moved)
    return "finished" if found is None else found.status


@pytest.mark.parametrize(
    ("losses", "status"),
    [
        ((201.0, 2667.0, 573.0), DIVERGED),
        ((1.1, 1.2, 1.3, 1.2, 1.4), "finished"),  # a slow method, a little above its start
        ((1.0, 9.0, 1.0, 9.0, 1.0, 9.0), "finished"),  # rounds of other classes
        ((7.0, 7.0), "finished"),  # several rounds, not two
        ((1.0, 7.0, 8.0, 9.0), DIVERGED),
        ((None, None, None), "finished"),  # nobody had a number: other verdicts are about that
    ],
)
def test_only_several_high_losses_in_a_row_are_divergence(losses, status: str) -> None:
    assert ending(rounds(*losses)) == status


def test_parameters_that_are_no_numbers_or_absurd_are_divergence() -> None:
    assert ending(rounds(1.0, norm=None)) == DIVERGED
    assert ending(rounds(1.0, norm=2e4)) == DIVERGED
    assert ending(rounds(1.0, norm=9e3)) == "finished"


def test_a_test_loss_that_is_no_number_is_divergence_unless_it_never_was_one() -> None:
    broken = {**FIRST, "round": 1, "loss": None}
    assert ending(rounds(1.0).tested(broken)) == DIVERGED
    never = Health(1.0).tested({**FIRST, "loss": None}).after({"round": 1, "replies": 1})
    assert ending(never.tested(broken)) == "finished"


def test_a_high_test_loss_of_a_model_that_is_right_is_no_divergence() -> None:
    sure = {**FIRST, "round": 1, "loss": 30.0, "accuracy": 0.8}
    assert ending(rounds(1.0).tested(sure)) == "finished"
    assert ending(rounds(1.0).tested({**sure, "accuracy": 0.2})) == DIVERGED
    bits = Health(1.0, BITS_PER_BYTE).tested({"round": 0, "loss": 2.0, "bits_per_byte": 1.0})
    bits = bits.after({"round": 1, "loss": 2.0, "norm": 1.0, "replies": 1})
    assert ending(bits.tested({"round": 1, "loss": 30.0, "bits_per_byte": 9.0})) == DIVERGED


def test_nothing_moved_and_nobody_heard_are_told_apart() -> None:
    assert ending(rounds(1.0), moved=False) == NOT_TRAINED
    silent = Health(1.0).tested(FIRST)
    line = {"round": 1, "replies": 0, "lost": {"transport": 3}, "why": {"transport": "not finite"}}
    found = silent.after(line).at_the_end(False)
    assert found is not None and found.status == UNHEARD
    assert "3 transport" in found.reason and "not finite" in found.reason
    skipped = rounds(1.0, skipped=2).at_the_end(False)
    assert isinstance(skipped, Ending) and "2 steps had a finite result" in skipped.reason
    guarded = rounds(1.0).at_the_end(False, kept=0)
    assert guarded is not None and "the guard left every step out" in guarded.reason
    taken = rounds(1.0).at_the_end(False, kept=1)
    assert taken is not None and "too small to change a number" in taken.reason


def test_a_stopped_run_that_diverges_comes_to_the_same_end(world: World, tmp_path: Path) -> None:
    from federation import Interrupted, StopAfter

    sets = [*SGD, "client.optimiser.lr=30"]
    whole = world.run(tmp_path, *sets, "name=whole")
    config = world.config(tmp_path, *sets, "name=stopped")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(1))
    result = run(config, resume=True)
    assert ends(result) == ends(whole)
    assert len(lines(result.folder, "rounds.jsonl")) == whole.summary["rounds"]


def ends(result: Result) -> tuple[str, int, str]:
    return result.summary["status"], result.summary["rounds"], result.summary["digest"]


def test_export_says_what_is_missing_of_an_adapter(world: World, tmp_path: Path) -> None:
    result = world.run(tmp_path / "out")
    (result.folder / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter: damaged .*--resume"):
        export_adapter(result.folder, tmp_path / "new")
    assert (result.folder / FILE).exists() and not (tmp_path / "new").exists()
