"""The star loop on the toy world: reductions, losses, counted bytes (laws 5 to 8)."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from forefed.aggregate import Mean
from forefed.assign import Contiguous, Everything
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Contribution, Lost, Reply, Update
from forefed.directions import Basis, Fresh
from forefed.federation.inprocess import ClientStore
from forefed.federation.lengths import described
from forefed.federation.server import Server
from forefed.federation.star import RunState, losses_by_reason
from forefed.gradients.backprop import Backprop
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining
from forefed.modifiers import Modifier
from forefed.optimisers import AdamW, Sgd, Yogi
from forefed.run import Config
from forefed.run.simulate import star_over
from forefed.wire import Dense, Scalars
from toy import HEAD, SIZES, ToyLoss, toy_clients, toy_params, toy_units

DOUBLE = torch.float64
TWO = Fresh(k=2, head_k=4)


def star(
    engine,
    assign,
    *,
    directions=None,
    codec=None,
    dtype=DOUBLE,
    server=None,
    cohort=6,
    modifiers=(),
    **settings,
):
    """The loop over the toy world."""
    config = Config(
        seed=4,
        cohort=cohort,
        assign=assign,
        engine=engine,
        directions=directions or Fresh(),
        client=LocalTraining(**{"batch_size": 4, "optimiser": Sgd(lr=0.2), **settings}),
        codec=codec or Dense(),
        server=server or Sgd(),
    ).model_copy(update={"modifiers": modifiers})  # also those that no registry knows
    return star_over(config, ToyLoss(DOUBLE), toy_params(DOUBLE), toy_clients(), toy_units(), HEAD)


def play(loop, rounds, params=None):
    state = RunState(0, params or toy_params(DOUBLE))
    reports = []
    for _ in range(rounds):
        state, report = loop.round(state)
        reports.append(report)
    return state, reports


def test_fedsgd_over_unequal_clients_is_one_pooled_gradient_step():
    loop = star(Backprop(), Everything(), batch_size="all")
    state, _ = play(loop, 1)
    examples = toy_clients()[0].examples
    leaves = {n: x.clone().requires_grad_(True) for n, x in toy_params(DOUBLE).items()}
    ToyLoss()(leaves, examples.batch(range(sum(SIZES)))).backward()
    for name, leaf in leaves.items():
        expected = (leaf - 0.2 * leaf.grad).detach()
        torch.testing.assert_close(state.params[name], expected, rtol=1e-12, atol=1e-14)


def test_one_client_is_local_training():
    loop = star(Backprop(), Everything(), cohort=1, epochs=3)
    state = RunState(0, toy_params(DOUBLE))
    (order,) = loop.plan(state).values()
    trainer = loop.transport.client
    update, _ = trainer(order, toy_clients()[order.client], {}, None)
    after, _ = loop.round(state)
    expected = trees.step(state.params, update.grad, 1.0)
    assert trees.digest(after.params) == trees.digest(expected)


@pytest.mark.parametrize("codec", [Dense(), Scalars()], ids=lambda c: c.kind)
def test_spry_with_one_client_is_fedfgd_bit_for_bit(codec):
    engine = Forward()
    settings = {"directions": TWO, "codec": codec, "cohort": 1}
    spry = star(engine, Contiguous(), **settings)
    fedfgd = star(engine, Everything(), **settings)
    assert trees.digest(play(spry, 3)[0].params) == trees.digest(play(fedfgd, 3)[0].params)


def test_split_basis_mode_with_one_step_is_split_fedsgd():
    basis = star(Forward(), Contiguous(), directions=Basis(), batch_size="all")
    exact = star(Backprop(), Contiguous(), batch_size="all")
    a, b = play(basis, 2)[0].params, play(exact, 2)[0].params
    assert trees.norm(trees.subtract(a, b)) < 1e-13


@pytest.mark.parametrize("rounds", [1, 3])
def test_two_runs_are_equal_and_a_split_run_goes_on(rounds):
    loop = star(Forward(), Contiguous(), directions=TWO, optimiser=AdamW(), server=Yogi())
    whole, _ = play(loop, 2 * rounds)
    first, _ = play(loop, rounds)
    second = first
    for _ in range(rounds):
        second, _ = loop.round(second)
    assert trees.digest(whole.params) == trees.digest(second.params)
    assert trees.digest(whole.of("optimizer")) == trees.digest(second.of("optimizer"))


def test_other_seeds_give_other_runs():
    loop = star(Forward(), Contiguous(), directions=TWO)
    other = replace(loop, key=Key(5))
    assert trees.digest(play(loop, 1)[0].params) != trees.digest(play(other, 1)[0].params)


def test_what_nobody_trained_keeps_its_bits():
    loop = star(Forward(), Contiguous(), directions=TWO, cohort=6, server=Yogi())
    lossy = replace(loop, transport=replace(loop.transport, faults={"crash": 0.7}))
    state = RunState(0, toy_params(DOUBLE))
    untouched = 0
    for _ in range(8):
        orders = lossy.plan(state)
        after, report = lossy.round(state)
        trained = {n for u in report.updates if u.n_examples for n in orders[u.client].assigned}
        for name in state.params.keys() - trained:
            untouched += 1
            assert torch.equal(after.params[name], state.params[name])
            assert all(
                torch.equal(after.of("optimizer")[k], x)
                for k, x in state.of("optimizer").items()
                if k.endswith(f"/{name}")
            )
        state = after
    assert untouched


def test_losses_have_their_frequencies_and_every_order_one_outcome():
    faults = {"error": 0.1, "crash": 0.1, "offline": 0.2, "deadline": 0.1, "transport": 0.1}
    loop = star(Backprop(), Everything(), cohort=6, max_steps=1)
    lossy = replace(loop, transport=replace(loop.transport, faults=faults))
    seen: Counter[str] = Counter()
    state = RunState(0, toy_params(DOUBLE))
    for _ in range(100):
        outcomes = []
        state, report = lossy.round(state, outcomes.append)
        assert sorted(o.client for o in outcomes) == list(range(6))
        for outcome in outcomes:
            seen[outcome.reason if isinstance(outcome, Lost) else "reply"] += 1
            if isinstance(outcome, Lost) and outcome.reason == "offline":
                assert outcome.bytes_down == 0
        assert losses_by_reason(report) == Counter(lost.reason for lost in report.lost)
    for reason, chance in {**faults, "reply": 0.4}.items():
        assert abs(seen[reason] / 600 - chance) < 4 * (chance * (1 - chance) / 600) ** 0.5


def test_a_round_in_which_everybody_is_lost_changes_nothing():
    loop = star(Backprop(), Everything())
    lossy = replace(loop, transport=replace(loop.transport, faults={"offline": 1.0}))
    state, reports = play(lossy, 2)
    assert state.round == 2
    assert trees.digest(state.params) == trees.digest(toy_params(DOUBLE))
    assert reports[0].bytes_down == reports[0].bytes_up == 0


def test_a_damaged_reply_is_a_recorded_loss():
    loop = star(Backprop(), Everything())
    send = loop.transport.exchange

    class Damaging:
        members = loop.transport.members

        def exchange(self, *given):
            for o in send(*given):
                yield replace(o, payload=o.payload[:-1]) if o.client == 1 else o

    broken = replace(loop, transport=Damaging())
    _, (report,) = play(broken, 1)
    assert [(lost.client, lost.reason) for lost in report.lost] == [(1, "transport")]
    assert len(report.updates) == 5


def test_counted_bytes_are_the_bytes_of_the_messages():
    loop = star(Forward(), Contiguous(), directions=TWO, codec=Scalars())
    outcomes: list[Reply | Lost] = []
    state, report = loop.round(RunState(0, toy_params(DOUBLE)), outcomes.append)
    replies = [o for o in outcomes if isinstance(o, Reply)]
    assert report.bytes_up == sum(len(r.payload) for r in replies)
    tensors = 8 * trees.size(state.params)
    for reply in replies:
        assert tensors < reply.bytes_down < tensors + 1200


def test_no_text_and_no_label_leaves_a_client():
    loop = star(Backprop(), Everything())
    outcomes: list[Reply | Lost] = []
    loop.round(RunState(0, toy_params(DOUBLE)), outcomes.append)
    clients = toy_clients()
    for reply in outcomes:
        data = clients[reply.client]
        for row in data.train:
            tokens = data.examples.tokens[
                data.examples.offsets[row] : data.examples.offsets[row + 1]
            ]
            if len(tokens) > 2:
                assert tokens.tobytes() not in reply.payload


def test_the_mean_by_hand():
    updates = [
        Update(1, 3, {"a": torch.tensor([1.0, 2.0])}),
        Update(0, 1, {"a": torch.tensor([5.0, 6.0]), "b": torch.tensor([7.0])}),
        Update(2, 0, {"a": torch.tensor([9e9, 9e9]), "c": torch.tensor([1.0])}),
    ]
    server = Server(Key(4), HEAD, Mean(), Sgd())
    zeros = {"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}
    moved = server.finish(RunState(0, zeros), {}, updates).state.params
    assert moved["a"].tolist() == [-2.0, -3.0]
    assert moved["b"].tolist() == [-7.0] and moved["c"].tolist() == [0.0]
    again = server.finish(RunState(0, zeros), {}, updates[::-1]).state.params
    assert trees.digest(again) == trees.digest(moved)


def test_a_report_says_how_long_each_contribution_was_and_where_it_pointed():
    updates = [
        Update(2, 1, {"a": torch.tensor([3.0, 4.0])}),
        Update(0, 1, {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor([0.0])}),
        Update(1, 0, {"a": torch.tensor([9e9, 9e9])}),
    ]
    server = Server(Key(4), HEAD, Mean(), Sgd())
    state = RunState(0, {"a": torch.zeros(2), "b": torch.zeros(1)})
    first, second = server.finish(state, {}, updates).contributions
    # the mean is (4, 2); of b both are zero
    assert first == {"client": 0, "norm": 5.0, "cosine": pytest.approx(20 / (5 * 20**0.5))}
    assert second == {"client": 2, "norm": 5.0, "cosine": pytest.approx(20 / (5 * 20**0.5))}
    unmoved = server.finish(state, {}, [Update(3, 1, {"b": torch.zeros(1)})])
    assert unmoved.contributions == ({"client": 3, "norm": 0.0, "cosine": None},)


class Telling(Modifier):
    """Counts in every hook, and doubles what passes it at the client and at the server."""

    kind: str = "telling"

    def on_step(self, grad, at, state, ctx, step):
        assert trees.digest(at) == trees.digest(ctx.start) or step
        return grad, {"steps": state.get("steps", torch.zeros(())) + 1}

    def on_send(self, update, state, ctx):
        doubled = {n: 2 * x for n, x in update.grad.items()}
        return replace(update, grad=doubled), {**state, "noise": ctx.secret.normal((2,))}

    def on_receive(self, c, state, ctx):
        return c.scaled(2.0), {"heard": state.get("heard", torch.zeros(())) + c.client}

    def on_aggregate(self, total, state, ctx):
        return {n: 2 * x for n, x in total.items()}, {**state, "moves": torch.tensor(ctx.round)}

    def broadcast(self, state):
        return {"heard": state["heard"]} if state else {}


def test_every_half_of_a_modifier_is_called_with_its_own_state():
    loop = star(Backprop(), Everything(), cohort=3)
    plain, _ = play(loop, 1)
    telling = star(Backprop(), Everything(), cohort=3, modifiers=(Telling(),))
    moved, (report, _) = play(telling, 2)
    first, _ = play(telling, 1)
    start = toy_params(DOUBLE)
    torch.testing.assert_close(
        first.params["head.weight"] - start["head.weight"],
        8 * (plain.params["head.weight"] - start["head.weight"]),
        rtol=1e-12,
        atol=1e-15,
    )
    kept = telling.transport.store.states
    steps = {c: int(s.get("modifier.telling/steps", 0)) for c, s in kept.items()}
    for client in report.heard:
        assert steps[client] >= -(-SIZES[client] // 4)
    noises = {s["modifier.telling/noise"].numpy().tobytes() for s in kept.values()}
    assert len(noises) == len(kept) > 1  # each client draws from a secret of its own
    assert int(moved.of("modifier.telling")["moves"]) == 2
    heard = sum(report.heard)
    assert int(first.of("modifier.telling")["heard"]) == heard
    orders = telling.plan(first)
    assert all(int(o.remembered("telling", ["heard"])["heard"]) == heard for o in orders.values())


def test_client_states_are_kept_between_rounds():
    loop = star(Backprop(), Everything(), keep_optimiser=True, optimiser=AdamW())
    store = ClientStore()
    kept = replace(loop, transport=replace(loop.transport, store=store))
    play(kept, 1)
    assert set(store.states) == {0, 1, 2, 3, 5}  # client 4 has no examples
    copy = ClientStore.unflat(store.flat())
    assert {c: trees.digest(s) for c, s in copy.states.items()} == {
        c: trees.digest(s) for c, s in store.states.items()
    }


def test_lengths_and_angles_are_those_of_what_a_client_trained_alone():
    total = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    some = [
        Contribution(7, 1, {"a": torch.tensor([1.0, 1.0])}),
        Contribution(2, 5, {"b": torch.tensor([[-2.0]]), "a": torch.tensor([0.0, 0.0])}),
        Contribution(5, 1, {"a": torch.tensor([0.0, 0.0])}),
    ]
    half = 2**-0.5
    told = [(c["client"], c["norm"], c["cosine"]) for c in described(some, total)]
    assert told == [
        (7, pytest.approx(2**0.5, rel=1e-5), pytest.approx(half, rel=1e-5)),
        (2, pytest.approx(2.0), pytest.approx(-0.8)),
        (5, 0.0, None),
    ]
    assert [c["cosine"] for c in described(some, None)] == [None] * 3
