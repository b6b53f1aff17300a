"""Clients' work in forked processes: the same bits in any number of them, and no orphan left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from federation import Interrupted, StopAfter, World, lines, without_clock
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Reply
from forefed.federation.inprocess import InProcess
from forefed.federation.star import RunState, Star
from forefed.federation.workers import Workers, joined, parted
from forefed.gradients.backprop import Backprop
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining
from forefed.optimisers import AdamW, Sgd
from forefed.run import Config, run
from forefed.run.build import workers_of
from forefed.run.simulate import star_over
from forefed.wire import Scalars
from toy import HEAD, ToyLoss, toy_clients, toy_params, toy_units

Parts = Sequence[bytes]
DOUBLE = torch.float64
CASES: dict[str, dict[str, Any]] = {
    "moments at the clients": {
        "client": LocalTraining(batch_size=4, optimiser=AdamW(lr=0.1), keep_optimiser=True)
    },
    "losses": {"faults": {"crash": 0.3, "offline": 0.2}},
    "over-selection": {"cohort": 3, "oversampling": 0.7},
    "split": {"assign": {"kind": "contiguous"}, "engine": Forward()},
    "records": {"codec": Scalars(), "engine": Forward(), "download": {"kind": "scalars"}},
}


def star(workers: int, settings: dict[str, Any]) -> Star:
    """The loop over the toy world, with so many workers."""
    usual = {"cohort": 5, "engine": Backprop(), "server": Sgd()}
    usual["client"] = LocalTraining(batch_size=4, optimiser=Sgd(lr=0.2))
    config = Config(seed=4, **{**usual, "assign": {"kind": "everything"}, **settings})
    parts = ToyLoss(DOUBLE), toy_params(DOUBLE), toy_clients(), toy_units()
    loop = star_over(config, *parts, HEAD)
    assert isinstance(loop.transport, InProcess)
    return replace(loop, transport=replace(loop.transport, workers=workers))


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_workers_gives_the_same_bits(case: str) -> None:
    told = []
    for workers in (1, 2, 4):
        loop, state = star(workers, CASES[case]), RunState(0, toy_params(DOUBLE))
        reports = []
        for _ in range(3):
            state, report = loop.round(state)
            reports.append(report)
        assert isinstance(loop.transport, InProcess)
        kept = trees.digest(loop.transport.store.flat())
        traffic = [(r.cohort, r.lost, r.bytes_up, r.bytes_down, r.record) for r in reports]
        told.append((trees.digest(state.params), kept, traffic))
        loop.transport.pool.close()
    assert told[0] == told[1] == told[2]


def doubled(parts: Parts) -> Parts:
    """Says which process it was; some words are orders to fail."""
    word = parts[0]
    if word == b"refuse":
        raise ProtocolError("not this one")
    if word == b"mistake":
        raise UserError("a setting is wrong")
    if word == b"break":
        raise ZeroDivisionError
    if word == b"end":
        os._exit(3)
    return [word * 2, str(os.getpid()).encode()]


def asked(pool: Workers, *words: bytes) -> list[Any]:
    return list(pool.each([], [(i, [word]) for i, word in enumerate(words)]))


def test_answers_come_in_order_and_a_client_stays_where_its_caches_are() -> None:
    pool = Workers(2, doubled)
    words = [str(i).encode() for i in range(9)]
    first = asked(pool, *words)
    assert [parts[0] for parts in first] == [w * 2 for w in words]
    assert os.getpid() not in {int(parts[1]) for parts in first}
    homes = dict(pool.homes)
    for client in range(9):
        (alone,) = pool.each([], [(client, [b"x"])])
        assert not isinstance(alone, ProtocolError) and alone[1] == first[client][1]
    assert pool.homes == homes
    refused = asked(pool, b"a", b"refuse", b"b")
    assert isinstance(refused[1], ProtocolError) and refused[2][0] == b"bb"
    pool.close()
    assert asked(pool, b"c")[0][0] == b"cc"  # forked anew
    pool.close()


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        (b"mistake", UserError, "a setting is wrong"),
        (b"break", RuntimeError, "ZeroDivisionError"),
        (b"end", RuntimeError, "ended amid its work"),
    ],
)
def test_a_worker_that_fails_ends_the_round_and_all_workers(
    word: bytes, error: type[Exception], said: str
) -> None:
    pool = Workers(2, doubled)
    with pytest.raises(error, match=said):
        asked(pool, b"a", word, b"b", b"c")
    assert not pool._there
    assert asked(pool, b"a")[0][0] == b"aa"
    pool.close()


def test_no_more_workers_than_a_round_has_clients() -> None:
    config = Config(cohort=3, oversampling=0.4, workers=10**6)
    assert workers_of(config, "cpu") == 5


def test_a_system_that_makes_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, made = os.fork, []

    def twice() -> int:
        if len(made) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made.append(fork())
        return made[-1]

    monkeypatch.setattr(os, "fork", twice)
    with pytest.raises(UserError, match=r"workers = 3: after 2 .*; set fewer"):
        asked(Workers(3, doubled), b"a")
    assert all(gone(pid) for pid in made)


def test_parts_come_back() -> None:
    for parts in ([], [b""], [b"a", b"", b"\0" * 9]):
        assert parted(joined(parts)) == parts


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def in_a_process(work: Callable[[int], None]) -> tuple[int, int]:
    """The process, and a pipe to read what it writes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            work(write)
            time.sleep(60)
        finally:
            os._exit(0)
    os.close(write)
    return pid, read


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_no_worker_outlives_a_killed_parent() -> None:
    def parent(write: int) -> None:
        pool = Workers(2, doubled)
        found = asked(pool, b"a", b"b")
        os.write(write, b" ".join({parts[1] for parts in found}) + b"\n")

    pid, read = in_a_process(parent)
    with os.fdopen(read) as stream:
        workers = [int(word) for word in stream.readline().split()]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert workers and all(map(gone, workers))


def test_a_run_goes_on_with_another_number_of_workers(world: World, tmp_path: Path) -> None:
    sets = ["strategy=fedavg", "client.keep_optimiser=true", "rounds=3", "cohort=3"]
    whole = world.run(tmp_path, *sets, "name=whole")
    for outcomes in (0, 1):
        name = f"name=stopped-{outcomes}"
        with pytest.raises(Interrupted):
            run(world.config(tmp_path, *sets, name, "workers=2"), watcher=StopAfter(1, outcomes))
        ended = run(world.config(tmp_path, *sets, name, "workers=3"), resume=True)
        assert ended.summary["digest"] == whole.summary["digest"]
        told = [without_clock(lines(r.folder, "rounds.jsonl")) for r in (whole, ended)]
        assert told[0] == told[1]


def test_replies_that_nobody_reads_end_the_workers() -> None:
    loop, state = star(2, {}), RunState(0, toy_params(DOUBLE))
    assert isinstance(loop.transport, InProcess)
    answers = loop.transport.exchange(loop.plan(state).values(), None)
    assert isinstance(next(answers), Reply)
    pool = loop.transport.pool
    assert pool._there
    answers.close()  # type: ignore[attr-defined]
    after, _ = loop.round(state)
    alone, _ = star(1, {}).round(state)
    assert trees.digest(after.params) == trees.digest(alone.params)
    pool.close()
