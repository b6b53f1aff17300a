"""Faults that need no network to be shown: of messages, of chance, of the server's disk.

What processes, nodes and clocks do is in test_deploy_real_faults.py.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from deployment import (
    STRATEGIES,
    FakePost,
    deployed,
    failing,
    make_sites,
    orders_for,
    rehearsal,
    remote,
)
from faults import fault
from federation import lines
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import LossReason, Order, Params
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.run import Watcher, run
from forefed.run.inprocess import InProcess
from forefed.wire.message import pack, pack_tensors, unpack, unpack_tensors
from toy import toy_clients

Change = Callable[[Envelope], Envelope]


def update(meta: Callable[[dict[str, Any]], object] = dict, tensors=dict, kind="dense") -> Change:
    """The same answer with other meta data or tensors in its update; its digest is right."""

    def change(answer: Envelope) -> Envelope:
        before, body = unpack(answer.blobs["update"], kind)
        held = unpack_tensors(body)
        after = {**before, **dict(meta(before))}
        payload = pack(kind, after, pack_tensors({**held, **tensors(held)}))
        return replace(answer, blobs={"update": payload})

    return change


def bytes_of(change: Callable[[bytes], bytes]) -> Change:
    return lambda a: replace(a, blobs={"update": change(a.blobs["update"])})


def first(held: Params, change: Callable[[torch.Tensor], torch.Tensor]) -> Params:
    name = sorted(held)[0]
    return {name: change(held[name])}


def flipped(data: bytes) -> bytes:
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


ANSWERS: dict[str, Change] = {
    "cut short": bytes_of(lambda data: data[:-1]),
    "one bit flipped": bytes_of(flipped),
    "of another version": bytes_of(lambda data: data[:4] + b"\x09\x00" + data[6:]),
    "no message of ours": bytes_of(lambda _: b"\x80\x04pickle"),
    "oversized": bytes_of(lambda _: bytes(1 << 27)),
    "NaN in it": update(tensors=lambda held: first(held, lambda x: x * torch.nan)),
    "infinite": update(tensors=lambda held: first(held, lambda x: x + torch.inf)),
    "of a wrong shape": update(tensors=lambda held: first(held, lambda x: x[None])),
    "of a wrong number format": update(tensors=lambda held: first(held, lambda x: x.half())),
    "with a tensor too many": update(tensors=lambda _: {"foreign": torch.zeros(2)}),
    "for another round": update(meta=lambda _: {"r": 7}),
    "of another client": update(meta=lambda _: {"c": 2}),
    "of minus one examples": update(meta=lambda _: {"n": -1}),
    "of 2^50 examples": update(meta=lambda _: {"n": 2**50}),
    "in an envelope for another round": lambda a: replace(a, round=7),
    "in an envelope of another client": lambda a: replace(a, client=2),
    "in an envelope of another run": lambda a: replace(a, run="another"),
}

ROWS = [
    pytest.param(
        change,
        id=name,
        marks=fault(f"answer: {name}", "any round", "one loss 'transport'; same bits"),
    )
    for name, change in ANSWERS.items()
]


@pytest.mark.parametrize("change", ROWS)
def test_an_answer_that_is_none_is_one_loss(change):
    loop, _ = remote(tamper={"b": lambda a: [change(a)]})
    state, report = loop.round(orders_for(loop))
    assert [(lost.client, lost.reason) for lost in report.lost] == [(1, "transport")]
    without, _ = remote(tamper={"b": failing("crash")})
    expected, _ = without.round(orders_for(without))
    assert trees.digest(state.params) == trees.digest(expected.params)


SLOPES = {
    "NaN": (
        torch.nan,
        {},
        "it counts as an answer whose steps are skipped; parameters stay finite",
    ),
    "infinite": (torch.inf, {}, "it counts as an answer whose steps are skipped"),
    "1e31": (1e31, {"transport": 1}, "one loss 'transport'"),
}


@pytest.mark.parametrize(
    "value, lost",
    [
        pytest.param(
            value, lost, id=name, marks=fault(f"answer: slopes are {name}", "round 2", out)
        )
        for name, (value, lost, out) in SLOPES.items()
    ],
)
def test_slopes_that_no_gradient_has(world, tmp_path, value, lost):
    post = FakePost(make_sites(world, tmp_path))
    change = update(
        tensors=lambda held: {n: torch.full_like(x, value) for n, x in held.items()},
        kind="scalars",
    )
    post.tamper["main"] = lambda a: [change(a) if a.round == 2 else a]
    result = run(deployed(world, tmp_path, *STRATEGIES["spry-scalars"]), connect=connect_by(post))
    assert [r["lost"] for r in lines(result.folder, "rounds.jsonl")] == [{}, lost, {}]
    assert result.summary["final"]["loss"] < 100


@fault("answer: delivered twice", "every round", "it counts once; same bits")
def test_an_answer_that_comes_twice():
    once, _ = remote()
    twice, _ = remote(tamper={n: lambda a: [a, a] for n in "abc"})
    a, _ = once.round(orders_for(once))
    b, report = twice.round(orders_for(twice))
    assert sorted(u.client for u in report.updates) == [0, 1, 2] and not report.lost
    assert trees.digest(a.params) == trees.digest(b.params)


@dataclass(frozen=True)
class Planned(InProcess):
    """A rehearsal that loses just these (round, client)."""

    lost: frozenset[tuple[int, int]] = frozenset()

    def fault(self, order: Order) -> LossReason | None:
        return "deadline" if (order.round, order.client) in self.lost else None


ROUNDS = 12


@fault(
    "30 % of the answers lost at random",
    "12 rounds",
    "each is one loss, 'deadline'; the others count; same bits as a rehearsal",
)
def test_lost_answers():
    draws = Key(11).uniform((ROUNDS + 1, 3)) < 0.3
    lost = frozenset((int(r), int(c)) for r, c in draws.nonzero() if r > 0)
    assert 5 < len(lost) < 18

    def losing(client: int):
        return lambda a: [] if (a.round, client) in lost else [a]

    loop, post = remote(tamper={n: losing(i) for i, n in enumerate("abc")}, deadline_s=0.1)
    clients, trainer = toy_clients(), post.sites["a"].trainer
    inner = Planned(3, lambda c: clients[(0, 1, 3)[c]], trainer, trainer.codec.encode, lost=lost)
    alone = replace(loop, transport=inner, deadline_s=None)
    state = other = orders_for(loop)
    seen = set()
    for _ in range(ROUNDS):
        state, report = loop.round(state)
        other, _ = alone.round(other)
        assert len(report.updates) + len(report.lost) == 3
        assert {lost.reason for lost in report.lost} <= {"deadline"}
        seen |= {(report.round, x.client) for x in report.lost}
    assert seen == lost
    assert trees.digest(state.params) == trees.digest(other.params)


class FillsTheDisk(Watcher):
    """After the first round no file may become as long as the checkpoint (RLIMIT_FSIZE)."""

    def __init__(self, folder):
        self.folder = folder

    def round(self, line):
        size = (self.folder / "checkpoint.safetensors").stat().st_size
        limit_files(size - 1)


def limit_files(size: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


@fault(
    "server: no room for the checkpoint (a limit of file size)",
    "round 2 of 3",
    "the run stops and says so; the former checkpoint is whole; --resume: same bits",
)
def test_a_full_disk(world, tmp_path):
    whole = run(rehearsal(world, tmp_path / "a", "strategy=fedavg"))
    connect = connect_by(FakePost(make_sites(world, tmp_path / "b")))
    config = deployed(world, tmp_path / "b", "strategy=fedavg", "checkpoint_every=1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    try:
        with pytest.raises(UserError, match=r"no room.*--resume") as said:
            run(config, connect=connect, watcher=FillsTheDisk(config.folder))
    finally:
        limit_files(before)
    assert str(config.folder) in str(said.value)
    again = run(config, resume=True, connect=connect)
    assert again.summary["digest"] == whole.summary["digest"]
    rounds = [json.loads(x)["round"] for x in (again.folder / "rounds.jsonl").open()]
    assert rounds == [1, 2, 3]
