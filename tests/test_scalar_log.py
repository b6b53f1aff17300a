"""The scalar log: first values and log are the whole run, and damage is never overlooked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from federation import Interrupted, StopAfter, World, snapshot
from forefed.cli import app
from forefed.core.errors import UserError
from forefed.run import configure, run
from forefed.run.checkpoint import FILE, config_digest
from forefed.run.log import LOG, LoggedRound, ScalarLog, create_log, open_log
from forefed.run.rebuild import replay_log
from forefed.run.record import read_config
from forefed.wire.message import pack
from forefed.wire.records import decode_record, encode_record
from test_run_resume import same

PER_STEP = ["codec=scalars", "directions.head_k=8", "client.max_steps=1"]
RUNS = {
    "own directions": [
        "strategy=spry",
        "directions.k=4",
        *PER_STEP,
        "download=scalars",
        "server=yogi",
    ],
    "several steps": [
        "strategy=spry",
        "directions.k=4",
        "codec=scalars",
        "client.max_steps=2",
    ],
    "shared, curvature": ["strategy=hiso", "directions.k=4", "directions.head_k=8"],
    "pool": ["strategy=fedkseed", "adapter=lora", "directions.size=64"],
    "updates that wait": ["strategy=decomfl", "trigger=variance", "trigger.at_most=7"],
    "losses": ["strategy=decomfl", "faults.crash=0.4", "faults.error=0.2"],
}


@pytest.mark.parametrize("kind", RUNS)
def test_first_values_and_log_are_the_run(
    kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forefed.run.log.DIGEST_EVERY", 2)
    config = world.config(tmp_path, *RUNS[kind], "rounds=3", "evaluate.every=3")
    result = run(config)
    found = replay_log(result.folder)
    assert found.digest == result.summary["digest"]
    assert found.digest != open_log(result.folder / LOG, config_digest(config)).base
    assert (found.state.round, found.digests, found.torn) == (3, (2, 3), 0)


def test_dense_runs_have_no_log(world: World, tmp_path: Path) -> None:
    result = world.run(tmp_path, "strategy=fedavg")
    assert not (result.folder / LOG).exists()
    with pytest.raises(UserError, match="there is no scalar log"):
        replay_log(result.folder)


# Going on.


@pytest.mark.parametrize(
    ("kind", "every"),
    [("own directions", 100), ("pool", 2), ("updates that wait", 100), ("losses", 2)],
)
def test_a_stopped_run_goes_on_from_log_and_checkpoint(
    kind: str, every: int, world: World, tmp_path: Path
) -> None:
    """Rounds that the log has beyond the checkpoint are not asked for again."""
    sets = [*RUNS[kind], "rounds=4", f"checkpoint_every={every}", "evaluate.every=4"]
    whole = world.run(tmp_path, *sets, "name=whole")
    config = world.config(tmp_path, *sets, "name=stopped")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(3, outcomes=1))
    assert (config.folder / FILE).exists() == (every == 2)
    with (config.folder / LOG).open("ab") as file:
        file.write((whole.folder / LOG).read_bytes()[-40:])
    asked = StopAfter(99)
    same(whole, run(config, resume=True, watcher=asked))
    assert asked.finished == 1
    assert (config.folder / LOG).read_bytes() == (whole.folder / LOG).read_bytes()


def test_killed_in_the_middle_of_a_write(world: World, tmp_path: Path) -> None:
    """The log is cut at every length that a kill can leave of its last message."""
    sets = [*RUNS["own directions"], "rounds=3", "checkpoint_every=100"]
    whole = world.run(tmp_path, *sets, "name=whole")
    config = world.config(tmp_path, *sets, "name=torn")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(2))
    path = config.folder / LOG
    log = open_log(path, config_digest(config))
    first, second = log.rounds()
    content = path.read_bytes()
    for length in (first.stop + 1, first.stop + 30, second.stop - 1):
        path.write_bytes(content[:length])
        assert [r.round for r in log.rounds()] == [1]
    found = replay_log(config.folder)
    assert (found.state.round, found.torn) == (1, second.stop - 1 - first.stop)
    path.write_bytes(content[: first.stop] + bytes(second.stop - first.stop))
    assert [r.round for r in log.rounds()] == [1]  # a power cut may leave zeros
    same(whole, run(config, resume=True))


# Damage.


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    return world.run(out, *RUNS["own directions"], "rounds=4").folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rounds_of(folder: Path) -> tuple[ScalarLog, list[LoggedRound]]:
    log = open_log(folder / LOG, config_digest(configure(base=read_config(folder))))
    return log, list(log.rounds())


def test_a_flipped_byte_is_found_wherever_it_is(copied: Path) -> None:
    path = copied / LOG
    content = path.read_bytes()
    _, rounds = rounds_of(copied)
    for place in (9, 70, rounds[0].stop + 6, rounds[1].stop + 50, rounds[3].stop - 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError) as error:
            replay_log(copied)
        before = sum(r.stop <= place for r in rounds)
        said = str(error.value)
        assert str(path) in said
        if place >= rounds[0].stop:
            assert f"after round {before}" in said
            assert ("damaged at byte" in said) == (before < 3)  # the last one may be torn


CUTS: dict[str, tuple[Callable[[bytes, list[int]], bytes], str]] = {
    "cut short": (
        lambda data, stops: data[: stops[2]],
        "ends after round 3, and the run's summary",
    ),
    "empty": (lambda data, stops: b"", "not a readable scalar log"),
    "garbage": (lambda data, stops: b"\xff" * 999, "not a readable scalar log"),
    "a round left out": (
        lambda data, stops: data[: stops[0]] + data[stops[1] :],
        "round 3 does not follow",
    ),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_log_that_is_not_whole_says_so(cut: str, copied: Path) -> None:
    change, message = CUTS[cut]
    path = copied / LOG
    _, rounds = rounds_of(copied)
    path.write_bytes(change(path.read_bytes(), [r.stop for r in rounds]))
    with pytest.raises(UserError, match=message):
        replay_log(copied)


def test_a_missing_log_and_a_foreign_one(copied: Path, world: World, tmp_path: Path) -> None:
    create_log(copied / LOG, "of another run", "0" * 64)
    with pytest.raises(UserError, match="log of a run with other settings"):
        replay_log(copied)
    (copied / LOG).unlink()
    with pytest.raises(UserError, match="log is missing"):
        replay_log(copied)


def test_a_mismatch_names_the_rounds_in_which_it_begins(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged round with a right checksum: one slope is another."""
    monkeypatch.setattr("forefed.run.log.DIGEST_EVERY", 2)
    result = world.run(tmp_path, *RUNS["several steps"], "rounds=4", "evaluate.every=4")
    _, rounds = rounds_of(result.folder)
    path = result.folder / LOG
    content = path.read_bytes()
    names = load_task_names(result.folder)
    record = decode_record(rounds[2].record, names)
    entry = record.entries[0]
    slopes = {group: 2 * x for group, x in entry.slopes.items()}
    forged = replace(record, entries=(replace(entry, slopes=slopes), *record.entries[1:]))
    meta = {"r": 3, "v": list(rounds[2].heard), "f": [], "d": ""}
    frame = pack("round", meta, encode_record(forged, names))
    path.write_bytes(content[: rounds[1].stop] + frame + content[rounds[2].stop :])
    with pytest.raises(UserError, match="a mismatch begins in rounds 3 to 4"):
        replay_log(result.folder)


def load_task_names(folder: Path) -> list[str]:
    return [n.removeprefix("params/") for n in load_file(folder / FILE) if n.startswith("params/")]


def test_other_first_values_are_refused(copied: Path) -> None:
    config = configure(base=read_config(copied))
    create_log(copied / LOG, config_digest(config), "0" * 64)
    with pytest.raises(UserError, match="other first values"):
        replay_log(copied)


def test_a_resumed_run_refuses_a_log_that_its_checkpoint_is_beyond(
    world: World, tmp_path: Path
) -> None:
    config = world.config(tmp_path, *RUNS["own directions"], "rounds=4")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(2))
    path = config.folder / LOG
    _, rounds = rounds_of(config.folder)
    path.write_bytes(path.read_bytes()[: rounds[0].stop])
    before = snapshot(config.folder)
    with pytest.raises(UserError, match="ends after round 1, and the run's checkpoint is of round"):
        run(config, resume=True)
    assert snapshot(config.folder) == before


def test_command(copied: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["replay", str(copied), "--export", str(tmp_path / "adapter")])
    digest = json.loads((copied / "summary.json").read_text())["digest"]
    assert shown.exit_code == 0 and digest[:40] in shown.output.replace("\n", "")
    names = ("adapter_model.safetensors", "adapter_config.json")
    for name in names:
        rebuilt, exported = ((f / "adapter" / name).read_bytes() for f in (tmp_path, copied))
        assert rebuilt == exported
