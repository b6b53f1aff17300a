"""Faults that need no network to be shown: of messages, of chance, of the server's disk.

What processes, nodes and clocks do is in test_deploy_real_faults.py.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployment import (
    STRATEGIES,
    FakePost,
    bits_without,
    deployed,
    failing,
    make_sites,
    orders_for,
    rehearsal,
    remote,
)
from faults import fault
from federation import lines, write_lines
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import LossReason, Order, Params
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.federation.inprocess import InProcess
from forefed.local.party import Party
from forefed.run import Watcher, run
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
    party = Party(lambda _: trainer)
    inner = Planned(3, lambda c: clients[(0, 1, 3)[c]], trainer, party, lost=lost)
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


def other_model(world, tmp_path, change: Callable[[Any], object]) -> str:
    """A folder with the tiny model, of which something was changed."""
    folder = tmp_path / "other-bert"
    shutil.copytree(world.bert, folder)
    change(folder)
    return str(folder)


def nudge_weights(folder) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = sorted(n for n in tensors if "layer.0" in n)[0]
    tensors[name] = tensors[name] + 1e-6
    save_file(tensors, path, {"format": "pt"})


def swap_words(folder) -> None:
    path = folder / "tokenizer.json"
    text = json.loads(path.read_text())
    ids = text["model"]["vocab"]
    ids["w8"], ids["w9"] = ids["w9"], ids["w8"]
    path.write_text(json.dumps(text))


STRANGE = {
    "other weights under the same name": (nudge_weights, "other weights under the model's name"),
    "another tokeniser, same weights": (swap_words, "another tokeniser under the model's name"),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            c, id=c, marks=fault(f"site: {c}", "joining", "refused, by name; others go on")
        )
        for c in STRANGE
    ],
)
def test_a_site_with_another_model_is_refused_by_name(world, tmp_path, case):
    change, why = STRANGE[case]
    sites, said = make_sites(world, tmp_path), []
    models = {str(world.bert): other_model(world, tmp_path, change)}
    sites["main"].settings = sites["main"].settings.model_copy(update={"models": models})
    config = deployed(world, tmp_path, "strategy=fedavg", "cohort=3")
    result = run(config, connect=connect_by(FakePost(sites), said.append))
    assert f"main does not take part: 'main' has {why}" in said
    assert [r["replies"] for r in lines(result.folder, "rounds.jsonl")] == [2, 2, 2]


SCHEMAS = {
    "other columns": [{"note": "w9", "class": "animal"}] * 4,
    "a label that the task has not": [{"text": "w9", "label": "stone"}] * 4,
    "no row": [],
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            c,
            id=c,
            marks=fault(
                f"site: rows with {c}",
                "joining",
                "it takes no part; the server hears the kind of the fault only, the site's log "
                "has the details; others go on",
            ),
        )
        for c in SCHEMAS
    ],
)
def test_a_site_with_another_schema_takes_no_part(world, tmp_path, caplog, case):
    sites, said = make_sites(world, tmp_path), []
    config = deployed(world, tmp_path, "strategy=fedavg")
    write_lines(tmp_path / "rows" / "main.jsonl", SCHEMAS[case])
    result = run(config, connect=connect_by(FakePost(sites), said.append))
    assert "main does not take part: failed: UserError; the site's log has the details" in said
    assert "stone" not in " ".join(said)
    assert "join of round 0: " in caplog.text and "Traceback" not in caplog.text
    assert [r["replies"] for r in lines(result.folder, "rounds.jsonl")] == [2, 2, 2]


class Comings(Watcher):
    """Sites that come and go between rounds: by round, who is away after it."""

    def __init__(self, post: FakePost, away: dict[int, set[str]]):
        self.post, self.away = post, away

    def round(self, line):
        self.post.offline = self.away.get(line["round"], self.post.offline)


@fault("a site joins late", "after round 1 of 3", "it takes part from the next round on")
def test_a_site_that_joins_late(world, tmp_path):
    post, said = FakePost(make_sites(world, tmp_path), offline={"main"}), []
    config = deployed(world, tmp_path, "strategy=fedavg")
    result = run(config, connect=connect_by(post, said.append), watcher=Comings(post, {1: set()}))
    assert [r["replies"] for r in lines(result.folder, "rounds.jsonl")] == [2, 3, 3]
    assert said[-1] == "main takes part"


@fault(
    "a site leaves for good",
    "after round 1 of 3",
    "said once; the others go on without it; same bits as a run in which it does not answer",
)
def test_a_site_that_leaves_for_good(world, tmp_path):
    post, said = FakePost(make_sites(world, tmp_path)), []
    config = deployed(world, tmp_path, "strategy=fedavg")
    result = run(
        config, connect=connect_by(post, said.append), watcher=Comings(post, {1: {"main"}})
    )
    rounds = lines(result.folder, "rounds.jsonl")
    assert [(r["replies"], len(r["cohort"])) for r in rounds] == [(3, 3), (2, 2), (2, 2)]
    assert said.count("main is gone") == 1
    lost = [(2, "main"), (3, "main")]
    assert result.summary["digest"] == bits_without(world, tmp_path / "x", lost, "strategy=fedavg")


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
