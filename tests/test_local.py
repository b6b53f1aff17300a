"""Local training and the scalar channel on the toy world (laws 4, 5 and 8)."""

import math

import numpy as np
import pytest
import torch

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.types import ClientContext, Order, Update
from forefed.directions import Basis, Fresh
from forefed.gradients.backprop import Backprop
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView, Trainer, replay
from forefed.modifiers import ClipNorm
from forefed.optimisers import AdamW, Sgd
from forefed.wire import Dense, Scalars
from toy import HEAD, SIZES, ToyLoss, toy_clients, toy_params, toy_task, trained

FLOAT, DOUBLE = torch.float32, torch.float64
ASSIGNED = ("layer.1.weight", "head.weight", "head.bias")
WAYS = {
    "backprop": (Backprop(), Fresh()),
    "forward": (Forward(), Fresh(k=3)),
    "unit vectors": (Forward(), Basis()),
    "perturbed head": (Forward(head="perturbed"), Fresh(k=2, distribution="gauss16")),
    "differences": (FiniteDifference(), Fresh(k=2)),
}


def trainer(engine, codec, dtype=FLOAT, directions=None, **settings):
    client = LocalTraining(**{"epochs": 2, "batch_size": 4, **settings})
    return Trainer(client, engine, codec, toy_task(dtype), directions=directions or Fresh())


def way_of(name, **head):
    """Engine and directions of this name."""
    engine, directions = WAYS[name]
    return {"engine": engine, "directions": directions.model_copy(update=head)}


def order(client, params=None, assigned=ASSIGNED, number=3):
    return Order(99, number, client, assigned, params or toy_params(FLOAT))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", [1, 8, "all"])
@pytest.mark.parametrize("optimiser", [AdamW(), Sgd(lr=0.1, momentum=0.9, head_lr=0.3)])
def test_the_servers_replay_equals_the_clients_own_update_bit_for_bit(way, head, optimiser):
    codec = Scalars()
    train = trainer(**way_of(way, head_k=head), codec=codec, optimiser=optimiser)
    for client, data in enumerate(toy_clients()):
        asked = order(client)
        update, own = trained(train, asked, data)
        received = replay(
            train, asked, codec.decode(codec.encode(update, ClientContext(order=asked)), asked)
        )
        assert trees.digest(received.grad) == trees.digest(own)


@pytest.mark.parametrize("way", [w for w in WAYS if w != "backprop"])
def test_scalars_with_the_whole_head_equal_dense(way):
    for client, data in enumerate(toy_clients()):
        asked = order(client)
        dense, _ = trainer(**way_of(way), codec=Dense())(asked, data, {})
        codec = Scalars()
        scalars = trainer(**way_of(way, head_k="all"), codec=codec)
        update, _ = scalars(asked, data, {})
        received = replay(
            scalars, asked, codec.decode(codec.encode(update, ClientContext(order=asked)), asked)
        )
        for name in ASSIGNED:
            torch.testing.assert_close(received.grad[name], dense.grad[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_upload_of_scalars_is_four_bytes_a_slope_and_a_small_header(way):
    codec = Scalars()
    train = trainer(**way_of(way), codec=codec)
    for client, data in enumerate(toy_clients()):
        asked = order(client)
        update, _ = train(asked, data, {})
        slopes = sum(x.numel() for x in update.slopes.values())
        assert len(codec.encode(update, ClientContext(order=asked))) <= 4 * slopes + 300
        steps = 2 * -(-SIZES[client] // 4)
        assert all(len(x) == steps for x in update.slopes.values())


def test_one_epoch_of_sgd_by_hand():
    data = toy_clients()[5]  # four examples: one batch
    params = toy_params(DOUBLE)
    asked = order(5, params, tuple(params))
    update, _ = trainer(Backprop(), Dense(), DOUBLE, epochs=1, optimiser=Sgd(lr=0.5))(
        asked, data, {}
    )
    leaves = {n: x.clone().requires_grad_(True) for n, x in params.items()}
    ToyLoss()(leaves, data.examples.batch(data.train)).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(update.grad[name], 0.5 * leaf.grad, rtol=1e-12, atol=1e-15)
    assert update.n_examples == 4


@pytest.mark.parametrize("grouped", [True, False])
def test_every_epoch_sees_every_example_once_in_new_batches(grouped):
    data = toy_clients()[1]
    settings = {"epochs": 3, "group_by_length": grouped}
    plan = trainer(Backprop(), Dense(), **settings).batches(order(1), data)
    assert sorted(len(b) for b in plan) == [1] * 3 + [4] * 9
    epochs = [np.concatenate(plan[i : i + 4]).tolist() for i in (0, 4, 8)]
    assert all(sorted(e) == data.train.tolist() for e in epochs)
    assert epochs[0] != epochs[1]
    capped = trainer(Backprop(), Dense(), max_steps=5, **settings).batches(order(1), data)
    assert len(capped) == 5
    whole = trainer(Backprop(), Dense(), epochs=1, batch_size="all").batches(order(1), data)
    assert [len(b) for b in whole] == [13]


def test_only_the_steps_that_are_taken_are_planned():
    data = toy_clients()[1]
    settings = {"epochs": 10**9, "max_steps": 2}
    assert len(trainer(Backprop(), Dense(), **settings).batches(order(1), data)) == 2


def test_batches_hold_texts_of_similar_length():
    data = toy_clients()[1]
    lengths = data.examples.lengths()

    def padding(grouped):
        plan = trainer(Backprop(), Dense(), epochs=1, group_by_length=grouped)
        return sum(
            int(lengths[b].max() * len(b) - lengths[b].sum()) for b in plan.batches(order(1), data)
        )

    assert padding(True) < padding(False)


@pytest.mark.parametrize("codec", [Dense(), Scalars()], ids=lambda c: c.kind)
def test_a_client_without_examples_changes_nothing_and_weighs_nothing(codec):
    train = trainer(Forward(), codec, directions=Fresh(k=2))
    asked = order(4)
    update, _ = train(asked, toy_clients()[4], {})
    received = replay(
        train, asked, codec.decode(codec.encode(update, ClientContext(order=asked)), asked)
    )
    assert received.n_examples == 0
    assert math.isnan(received.metrics["loss"])
    assert all(float(g.abs().max()) == 0 for g in received.grad.values())


class PoisonedLoss(ToyLoss):
    """NaN whenever token 3 occurs in the batch."""

    def __call__(self, params, batch):
        value = super().__call__(params, batch)
        return value * math.nan if bool((batch.inputs["input_ids"] == 3).any()) else value


@pytest.mark.parametrize("codec", [Dense(), Scalars()], ids=lambda c: c.kind)
@pytest.mark.parametrize("way", WAYS)
def test_non_finite_steps_are_skipped_and_counted(way, codec):
    loss = PoisonedLoss(FLOAT)
    view = TaskView(loss, loss, HEAD)
    train = Trainer(LocalTraining(batch_size=1), codec=codec, task=view, **way_of(way))
    asked, data = order(1), toy_clients()[1]
    update, _ = train(asked, data, {})
    ids = [data.examples.batch([i]).inputs["input_ids"] for i in data.train]
    poisoned = sum(bool((x == 3).any()) for x in ids)
    assert 0 < poisoned < 13
    assert update.metrics["skipped"] == poisoned
    assert math.isfinite(update.metrics["loss"])
    received = replay(
        train, asked, codec.decode(codec.encode(update, ClientContext(order=asked)), asked)
    )
    assert trees.all_finite(received.grad)
    assert trees.norm(received.grad) > 0


def test_the_optimiser_state_stays_at_the_client_on_request():
    data, asked = toy_clients()[1], order(1)
    train = trainer(Backprop(), Dense(), keep_optimiser=True)
    _, state = train(asked, data, {})
    assert any(name.startswith("optimizer/m/") for name in state)
    again, _ = train(asked, data, state)
    fresh, _ = train(asked, data, {})
    assert trees.digest(again.grad) != trees.digest(fresh.grad)
    _, nothing = trainer(Backprop(), Dense())(asked, data, {})
    assert nothing == {}


def test_only_assigned_names_leave_and_only_they_are_accepted():
    codec = Dense()
    asked = order(1)
    update, _ = trainer(Backprop(), codec)(asked, toy_clients()[1], {})
    assert set(update.grad) == set(ASSIGNED)
    more = Update(1, 13, {**update.grad, "layer.0.weight": torch.zeros(5, 5)}, None, {})
    with pytest.raises(ProtocolError, match=r"layer\.0\.weight"):
        codec.decode(codec.encode(more, ClientContext(order=asked)), asked)


def test_slopes_of_the_wrong_number_or_group_are_refused():
    codec, asked = Scalars(), order(1)
    train = trainer(Forward(), codec, directions=Fresh(k=2, head_k=8))
    for slopes in (
        {"body": torch.zeros(1, 3), "head": torch.zeros(1, 8)},
        {"body": torch.zeros(1, 2)},
        {"body": torch.zeros(1, 2), "head": torch.zeros(1, 8), "more": torch.zeros(1, 1)},
    ):
        data = codec.encode(Update(1, 4, None, slopes, {}), ClientContext(order=asked))
        with pytest.raises(ProtocolError):
            replay(train, asked, codec.decode(data, asked))


def test_clipping_bounds_the_update():
    asked, data = order(1), toy_clients()[1]
    plain, _ = trainer(Backprop(), Dense(), optimiser=Sgd(lr=1.0))(asked, data, {})
    base = trainer(Backprop(), Dense(), optimiser=Sgd(lr=1.0))
    clipped, _ = Trainer(base.settings, base.engine, base.codec, base.task, (ClipNorm(norm=0.01),))(
        asked, data, {}
    )
    assert trees.norm(plain.grad) > 0.02
    assert trees.norm(clipped.grad) == pytest.approx(0.01, rel=1e-5)
    loose, _ = Trainer(base.settings, base.engine, base.codec, base.task, (ClipNorm(norm=1e6),))(
        asked, data, {}
    )
    assert trees.digest(loose.grad) == trees.digest(plain.grad)


def test_random_slopes_far_above_the_median_are_clamped_and_counted():
    found = []
    for directions in (Fresh(clamp=1.5), Fresh(clamp=0), Basis()):
        train = trainer(Forward(), Dense(), directions=directions, batch_size=1)
        found.append(train(order(1), toy_clients()[1], {})[0].metrics["clamped"])
    assert found[0] > 0 and found[1:] == [0, 0]
