"""Rounds that are added up as answers come: the same as held ones, and the same in any order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from forefed.aggregate import Mean, Median
from forefed.aggregate.streaming_mean import RunningSum
from forefed.assign import Contiguous, Everything
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order, Reply, Update
from forefed.directions import Fresh
from forefed.federation import streaming
from forefed.federation.star import RunState, Star
from forefed.federation.streaming import Growing
from forefed.gradients.backprop import Backprop
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining
from forefed.optimisers import Sgd
from forefed.run import Config
from forefed.run.simulate import star_over
from forefed.wire import CODECS, Dense
from forefed.wire.flat import form_of
from forefed.wire.message import pack, pack_tensors
from toy import HEAD, ToyLoss, toy_clients, toy_params, toy_units

SINGLE = torch.float32


def star(engine: Any = None, **settings: Any) -> Star:
    """The loop over the toy world in float32."""
    config = Config(
        seed=4,
        **{"cohort": 6, "assign": Everything(), "codec": Dense(), "aggregator": Mean(), **settings},
        engine=engine or Backprop(),
        directions=Fresh(k=2),
        client=LocalTraining(batch_size=4, optimiser=Sgd(lr=0.2)),
        server=Sgd(),
    )
    parts = ToyLoss(SINGLE), toy_params(SINGLE), toy_clients(), toy_units()
    return star_over(config, *parts, HEAD)


def grows(loop: Star, state: RunState | None = None) -> bool:
    state = state or RunState(0, toy_params(SINGLE))
    return Growing.of(loop.server, state, loop.plan(state)) is not None


def test_a_sum_has_the_same_bits_in_any_order_and_holds_nobody_in_its_own() -> None:
    clients = (5, 2, 9, 7, 1, 4)
    x = {c: (Key(c).normal((300,)) * 10.0 ** (3 * (c - 4))).float().numpy() for c in clients}
    x[9][3] = np.inf  # left out, as 7, which is lost
    totals = []
    for seed in range(8):
        total = RunningSum(clients, 300)
        for i in [*range(6)] if seed == 0 else Key(seed).permutation(6):
            client = clients[i]
            if client == 7:
                total.leave_out(client)
                continue
            norm = total.add(client, client + 0.5, x[client].copy())
            exact = float(np.linalg.norm(x[client].astype(np.float64)))
            assert norm == (None if client == 9 else pytest.approx(exact, rel=1e-12))
            assert seed or total.waiting == 0
        totals.append(total.finished().clone())
        assert total.weight == 5.5 + 2.5 + 1.5 + 4.5 and total.waiting == 0
    assert all(torch.equal(t, totals[0]) for t in totals)
    by_hand = sum((c + 0.5) * x[c].astype(np.float64) for c in (5, 2, 1, 4))
    np.testing.assert_allclose(totals[0].numpy(), by_hand, rtol=1e-13, atol=1e-13)


def test_whoever_was_never_heard_keeps_nobody_waiting_in_the_end() -> None:
    total = RunningSum((1, 2, 3), 2)
    total.add(3, 1.0, np.ones(2, np.float32))
    assert total.waiting == 1 and total.weight == 0
    assert total.finished().tolist() == [1.0, 1.0] and total.weight == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"assign": Contiguous()},
        {"engine": Forward()},
        {"codec": CODECS["quantised"]()},
        {"codec": CODECS["sparse"]()},
        {"faults": {"crash": 0.4}},
    ],
    ids=["mean", "split", "estimates", "quantised", "sparse", "losses"],
)
def test_a_round_that_grows_is_the_round_that_holds(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, state = star(**settings), RunState(0, toy_params(SINGLE))
    assert not grows(loop)  # a few kilobytes
    held, before = loop.round(state)
    monkeypatch.setattr(streaming, "HELD", 0)
    assert grows(loop)
    after, report = loop.round(state)
    for name, x in held.params.items():
        torch.testing.assert_close(after.params[name], x, rtol=1e-6, atol=1e-8)
    assert after.round == held.round and after.states.keys() == held.states.keys()
    for name in ("cohort", "lost", "bytes_up", "bytes_down", "heard", "abandoned"):
        assert getattr(report, name) == getattr(before, name), name
    assert [u.n_examples for u in report.updates] == [u.n_examples for u in before.updates]
    assert all(u.grad is None for u in report.updates)
    told = [(c["client"], c["norm"]) for c in report.contributions]
    for (client, norm), c in zip(told, before.contributions, strict=True):
        assert client == c["client"] and norm == pytest.approx(c["norm"], rel=1e-5)


def test_answers_in_another_order_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HELD", 0)
    loop, state = star(assign=Contiguous()), RunState(0, toy_params(SINGLE))
    orders = loop.plan(state)
    answers = [o for o in loop.transport.exchange(orders.values(), None) if isinstance(o, Reply)]
    found = []
    for seed in range(4):
        sums = Growing.of(loop.server, state, orders)
        assert sums is not None
        order = [int(i) for i in Key(seed).permutation(len(answers))]
        heard = [sums.read(answers[i].client, answers[i].payload) for i in order]
        found.append(sums.finish(state, heard, None).state.params)
    for name, x in found[0].items():
        assert all(torch.equal(other[name], x) for other in found), name


def test_what_needs_single_contributions_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HELD", 0)
    assert grows(star()) and not grows(star(aggregator=Median()))
    assert not grows(star(modifiers=[{"kind": "scaffold"}]))
    assert not grows(star(engine=Forward(), assign=Contiguous()))  # equal noise is not known
    assert not grows(star(), RunState(0, toy_params(torch.float64)))


def test_a_damaged_answer_is_refused_and_waited_for_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "HELD", 0)
    loop, state = star(), RunState(0, toy_params(SINGLE))
    orders = loop.plan(state)
    answers = {
        o.client: o.payload
        for o in loop.transport.exchange(orders.values(), None)
        if isinstance(o, Reply)
    }
    sums = Growing.of(loop.server, state, orders)
    assert sums is not None
    first, *others = answers
    endless = {n: x * float("nan") for n, x in state.params.items()}
    payload = Dense().encode(
        Update(first, 3, endless, None, {}), ClientContext(order=orders[first])
    )
    for bad in (answers[first][:-1], payload):
        with pytest.raises(ProtocolError):
            sums.read(first, bad)
    for client in others:
        sums.read(client, answers[client])
    (total,) = sums.sums.values()
    assert total.waiting == 0 and first not in sums.norms


def test_a_vector_is_what_decode_gives_and_another_form_is_read_the_long_way() -> None:
    like = {"b": torch.zeros(2, 3), "a": torch.zeros(5), "c": torch.zeros(0)}
    order = Order(1, 1, 4, ("b", "a", "c"), like)
    form = form_of(like)
    assert form is not None
    grad = {n: Key(1).fold(n).normal(x.shape).float() for n, x in like.items()}
    usual = Dense().encode(Update(4, 2, grad, None, {}), ClientContext(order=order))
    body = pack_tensors(grad)
    length = int.from_bytes(body[:8], "little") + 8  # the same header, with room behind it
    other = (length).to_bytes(8, "little") + body[8 : length + 8 - 8] + b" " * 8 + body[length:]
    for data in (usual, pack("dense", {"r": 1, "c": 4, "n": 2, "m": {}}, other)):
        update, x_D = Dense().vector(data, order, form)
        whole = Dense().decode(data, order)
        assert update == replace(whole, grad=None) and whole.grad is not None
        assert [*whole.grad] == [*order.assigned]
        parts = form.tensors(x_D.copy())
        assert all(torch.equal(parts[n], grad[n]) for n in like)
        assert all(torch.equal(whole.grad[n], grad[n]) for n in like)
