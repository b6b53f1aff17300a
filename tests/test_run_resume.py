"""A run that was stopped, whenever and however, ends as if it had never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load, save

from copies import begun
from federation import Interrupted, StopAfter, World, lines, snapshot, without_clock
from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.keys import Key
from forefed.core.types import Json
from forefed.run import Result, Watcher, run
from forefed.run.checkpoint import FILE
from forefed.run.record import locked

HISO = ["strategy=hiso", "directions.k=4", "directions.head_k=8"]
FZOOS = ["strategy=fzoos", "client.batch_size=all"]
NEWTON = [
    *("strategy=spry", "codec=dense", "client.max_steps=1", "client.optimiser.kind=sgd"),
    *(
        "engine.curvature=true",
        'modifiers=["gauss_newton"]',
        "adapter.u=4",
        "adapter.layers=last:1",
    ),
]
STATEFUL = {
    "moments at the clients": ["strategy=fedavg", "client.keep_optimiser=true"],
    "moments at the server": ["strategy=spry", "server=yogi", "server.lr=0.01"],
    "slopes": ["strategy=spry", "codec=scalars", "directions.head_k=8"],
    "records and curvature": [*HISO, "adapter=lora", "adapter.r=8", "server=adam"],
    "sums over a pool": ["strategy=fedkseed", "adapter=lora", "directions.size=64"],
    "nodes and their momentum": ["strategy=monna", "topology.graph=ring", "adapter.r=2"],
    "points that were asked": [*FZOOS, "adapter.u=6", "client.epochs=2"],
    "clocks of nodes and edges": ["strategy=dadao", "client.batch_size=all"],
    "curvature beside a gradient": [*NEWTON, "trigger=variance", "trigger.at_most=2"],
    "slow copies": ["strategy=fedavg", "engine=block_local", "adapter.r=2"],
    "updates that wait": ["strategy=fwdllm", "trigger.at_most=7", "directions.k=2"],
}


def same(a: Result, b: Result) -> None:
    """The two folders tell of the same run, apart from what a clock decides."""
    assert a.summary["digest"] == b.summary["digest"]
    assert a.summary["totals"]["bytes_up"] == b.summary["totals"]["bytes_up"]
    rounds = [without_clock(lines(r.folder, "rounds.jsonl")) for r in (a, b)]
    assert rounds[0] == rounds[1]
    for name in ("evaluations.jsonl", "checkpoint.safetensors", "partition.json"):
        assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes(), name
    adapters = [r.folder / "adapter" / "adapter_model.safetensors" for r in (a, b)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.parametrize("kept", STATEFUL)
def test_an_interrupted_run_goes_on_as_if_never_stopped(
    kept: str, world: World, tmp_path: Path
) -> None:
    sets = [*STATEFUL[kept], "rounds=4", "cohort=4", "evaluate.every=2"]
    whole = world.run(tmp_path, *sets, "name=whole")
    for name, stop in (("after-2", StopAfter(2)), ("amid-3", StopAfter(2, outcomes=2))):
        config = world.config(tmp_path, *sets, f"name={name}")
        with pytest.raises(Interrupted):
            run(config, watcher=stop)
        assert not (config.folder / "summary.json").exists()
        same(whole, run(config, resume=True))


def test_interrupted_before_the_first_checkpoint(world: World, tmp_path: Path) -> None:
    whole = world.run(tmp_path, "name=whole")
    config = world.config(tmp_path, "name=early")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(0, outcomes=1))
    assert not (config.folder / FILE).exists()
    same(whole, run(config, resume=True))


def test_lines_after_the_checkpoint_are_written_again(world: World, tmp_path: Path) -> None:
    """Checkpoints are rarer than rounds, and the kill has torn the last line."""
    sets = ["rounds=5", "checkpoint_every=2"]
    whole = world.run(tmp_path, *sets, "name=whole")
    config = world.config(tmp_path, *sets, "name=torn")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(3))
    with (config.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "lo')
    same(whole, run(config, resume=True))


def test_progress_of_a_resumed_run_starts_where_it_stopped(world: World, tmp_path: Path) -> None:
    class Starts(Watcher):
        start = -1
        rounds: tuple[int, ...] = ()

        def built(self, federation: object, start_round: int) -> None:
            self.start = start_round

        def round(self, line: Json) -> None:
            self.rounds += (line["round"],)

    config = world.config(tmp_path, "rounds=3")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(1))
    watcher = Starts()
    run(config, resume=True, watcher=watcher)
    assert watcher.start == 1 and watcher.rounds == (2, 3)


# Kills. A moment: a file of the run that was written to and has so many lines more than before,
# and up to 0.2 s after that.

MOMENTS = ((".lock", 0), ("rounds.jsonl", 1), ("evaluations.jsonl", 1), ("rounds.jsonl", 3))
"""While loading, right after a checkpoint, amid a round, and later."""


def test_killed_at_any_moment_and_resumed(world: World, tmp_path: Path) -> None:
    """FOREFED_KILLS (2): how many kills, one after the other, before the run may end."""
    sets = ["strategy=spry", "server=yogi", "rounds=8", "client.max_steps=1"]
    whole = world.run(tmp_path, *sets, "name=whole")
    config = world.config(tmp_path, *sets, "name=killed")
    log = tmp_path / "log"
    for kill in range(int(os.environ.get("FOREFED_KILLS", "2"))):
        started = (config.folder / "config.json").exists()
        process = psutil.Process(begun(lambda on=started: run(config, resume=on), log))
        wait_for_the_moment(config.folder, kill, process)
        os.kill(process.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        assert code in (-signal.SIGKILL, 0), log.read_text()  # 0: the run was faster
    same(whole, run(config, resume=(config.folder / "config.json").exists()))


def wait_for_the_moment(folder: Path, kill: int, process: psutil.Process) -> None:
    name, more = MOMENTS[kill % len(MOMENTS)]
    path, before = folder / name, line_count(folder / name)
    started, end = time.time_ns(), time.monotonic() + 60
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        written = path.exists() and path.stat().st_mtime_ns >= started
        if written and line_count(path) >= before + more:
            break
        time.sleep(0.005)
    time.sleep(0.2 * float(Key(7).fold("kill", kill).uniform((1,))))


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# Damage. The checkpoint is left as it is, and so is everything else.


@pytest.fixture(scope="module")
def stopped(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above an unfinished run "run" with a checkpoint of round 1."""
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        run(world.config(out), watcher=StopAfter(1))
    return out


def flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def other_format(data: bytes) -> bytes:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    about = {**json.loads(header["forefed"]), "format": "99"}
    return save(load(data), {"forefed": json.dumps(about)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "damaged"),
        (lambda data: data[:-40], "damaged"),
        (lambda data: data[:100], "damaged"),
        (lambda data: b"", "damaged"),
        (lambda data: b"\xff" * 500, "damaged"),
        (other_format, "format '99'"),
    ],
    ids=["flipped", "cut", "header cut", "empty", "garbage", "other format"],
)
def test_a_damaged_checkpoint_is_refused_and_kept(
    damage: Callable[[bytes], bytes], message: str, world: World, stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run")
    config = world.config(tmp_path)
    path = config.folder / FILE
    path.write_bytes(damage(path.read_bytes()))
    before = snapshot(config.folder)
    with pytest.raises(UserError, match=message) as error:
        run(config, resume=True)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert snapshot(config.folder) == before


def test_other_settings_are_refused(world: World, stopped: Path) -> None:
    before = snapshot(stopped / "run")
    with pytest.raises(UserError, match="other settings"):
        run(world.config(stopped, "client.optimiser.lr=0.5"), resume=True)
    assert snapshot(stopped / "run") == before


def test_more_rounds_are_other_settings(world: World, stopped: Path) -> None:
    with pytest.raises(UserError, match="other settings"):
        run(world.config(stopped, "rounds=9"), resume=True)


# Starting twice.


def test_a_finished_run_does_nothing(world: World, tmp_path: Path) -> None:
    class Told(Watcher):
        summaries: tuple[Json, ...] = ()

        def already_finished(self, summary: Json) -> None:
            self.summaries += (summary,)

    result = world.run(tmp_path)
    before = snapshot(result.folder)
    for resume in (False, True):
        watcher = Told()
        assert run(world.config(tmp_path), resume, watcher) == result
        assert watcher.summaries == (result.summary,)
    assert snapshot(result.folder) == before


def test_a_finished_run_is_not_overwritten_by_another(world: World, tmp_path: Path) -> None:
    result = world.run(tmp_path)
    before = snapshot(result.folder)
    for resume in (False, True):
        with pytest.raises(UserError):
            run(world.config(tmp_path, "seed=5"), resume)
    assert snapshot(result.folder) == before


def test_an_unfinished_run_is_not_started_anew(world: World, stopped: Path) -> None:
    before = snapshot(stopped / "run")
    with pytest.raises(UserError, match="--resume"):
        run(world.config(stopped))
    assert snapshot(stopped / "run") == before


def test_nothing_to_resume(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        run(world.config(tmp_path), resume=True)
    assert not list(tmp_path.iterdir())


def test_one_process_per_folder(world: World, stopped: Path, tmp_path: Path) -> None:
    with locked(stopped / "run"), pytest.raises(UserError, match="another process"):
        run(world.config(stopped), resume=True)
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        run(world.config(tmp_path))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
