"""Law 1 to 4 on every family: slopes, gradients, replay, in float64 on tiny random models."""

import numpy as np
import pytest
import torch

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order
from forefed.data.examples import ClientData
from forefed.directions import Basis, Fresh
from forefed.directions.sets import BasisDirections
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.gradients.structured import Structured
from forefed.local import LocalTraining, TaskView, Trainer, replay
from forefed.local.training import AssignedLoss
from forefed.models.adapters import Lora, TinyLora
from forefed.wire import Scalars
from tiny import FAMILIES, KINDS, moved, tiny_examples, tiny_task, with_dropout
from toy import trained

EVERY = pytest.mark.parametrize(("family", "causal"), KINDS)
ADAPTERS = pytest.mark.parametrize("adapter", [Lora(r=2), TinyLora(r=2, u=3)], ids=lambda a: a.kind)


def scene(family, causal, adapter):
    task = tiny_task(family, adapter, causal)
    params = moved(task.params)
    batch = tiny_examples(causal=causal, types=family == "bert").batch(range(7))
    exact = Backprop()(task.loss, params, batch)
    body = [n for n in params if n not in task.head]
    return task, params, batch, exact, trees.pick(params, body)


def far(a, b):
    return trees.norm(trees.subtract(a, b)) / trees.norm(b)


@EVERY
@ADAPTERS
def test_slopes_equal_gradient_times_direction(family, causal, adapter):
    task, params, batch, exact, body = scene(family, causal, adapter)
    engine = Forward(tangents=2)
    directions = Fresh(k=3).of(Order(1, 1, 1, tuple(params), params))
    found = engine(task.loss, params, batch, directions, task.head)
    expected = directions.project(trees.pick(exact.grad, body))
    assert float((found.slopes_K - expected).norm() / expected.norm()) < 1e-9
    assert found.loss == pytest.approx(exact.loss, rel=1e-12)
    if task.head:
        assert far(found.grad, trees.pick(exact.grad, task.head)) < 1e-10
    else:
        assert found.grad == {}


@EVERY
@ADAPTERS
def test_basis_mode_is_the_gradient(family, causal, adapter):
    task, params, batch, exact, _ = scene(family, causal, adapter)
    unit = next(u for u in task.units if u.depth == 1 and not u.is_head)
    loss = AssignedLoss(task.loss, params)
    some = trees.pick(params, unit.params)
    for tangents in (1, 5):
        engine = Forward(tangents=tangents)
        slopes = engine(loss, some, batch, BasisDirections(), task.head).slopes_K
        grad = BasisDirections().combine(some, slopes)
        assert far(grad, trees.pick(exact.grad, some)) < 1e-9


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("k", [3, "all"])
@pytest.mark.parametrize("independent", [1, 2])
def test_a_rehearsal_has_the_slopes_and_the_costs(family, k, independent):
    task, params, batch, _, _ = scene(family, False, TinyLora(r=2, u=3))
    if k == "all" and independent == 2:
        pytest.skip("unit vectors are the same for every part of a batch")
    real = Forward(tangents=2, micro_batch=3, sub_batches=independent, emulate=False)
    rehearsal = real.model_copy(update={"emulate": True})
    kind = Basis() if k == "all" else Fresh(k=k)
    directions = kind.of(Order(1, 1, 1, tuple(params), params), parts=independent)
    expected = real(task.loss, params, batch, directions, task.head)
    found = rehearsal(task.loss, params, batch, directions, task.head)
    assert float((found.slopes_K - expected.slopes_K).norm() / expected.slopes_K.norm()) < 1e-10
    assert far(found.grad, expected.grad) < 1e-10
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.forwards == expected.forwards > 3 * batch.size
    assert rehearsal.stands_for == real and real.stands_for is real
    differences = FiniteDifference(head="perturbed", emulate=True)
    directions = Fresh(k=2).of(Order(1, 1, 1, tuple(params), params))
    found = differences(task.loss, params, batch, directions, task.head)
    exact = Backprop()(task.loss, params, batch).grad
    assert torch.allclose(found.slopes_K, directions.project(exact), rtol=1e-10)
    assert found.forwards == 4 * batch.size


@EVERY
@ADAPTERS
def test_recomputation_gives_the_same_gradient(family, causal, adapter):
    task, params, batch, exact, _ = scene(family, causal, adapter)
    for rows in (None, 3):
        for engine in (Checkpointed(micro_batch=rows), Structured(micro_batch=rows)):
            found = engine(engine.loss_of(task), params, batch)
            assert far(found.grad, exact.grad) < 1e-12


@EVERY
def test_micro_batches_of_ragged_rows_change_nothing(family, causal):
    task, params, batch, exact, _ = scene(family, causal, Lora(r=2))
    assert far(Backprop(micro_batch=2)(task.loss, params, batch).grad, exact.grad) < 1e-12
    engine = Forward()
    directions = Fresh(k=2).of(Order(1, 1, 1, tuple(params), params))
    whole = engine(task.loss, params, batch, directions, task.head)
    parts = engine.model_copy(update={"micro_batch": 3})(
        task.loss, params, batch, directions, task.head
    )
    assert float((whole.slopes_K - parts.slopes_K).norm() / whole.slopes_K.norm()) < 1e-12


@EVERY
def test_finite_differences_tend_to_the_slopes(family, causal):
    task, params, batch, exact, body = scene(family, causal, Lora(r=2))
    engine = FiniteDifference(eps=1e-5)
    directions = Fresh(k=2).of(Order(1, 1, 1, tuple(params), params))
    found = engine(task.loss, params, batch, directions, task.head)
    expected = directions.project(trees.pick(exact.grad, body))
    assert float((found.slopes_K - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_the_adapter_is_one_mask_for_all_engines(family):
    task = tiny_task(family, with_dropout(Lora(r=2)))
    params = moved(task.params)
    batch = tiny_examples(types=family == "bert").batch(range(7), dropout=Key(3))
    exact = Backprop()(task.loss, params, batch)
    dry = Backprop()(task.loss, params, tiny_examples(types=family == "bert").batch(range(7)))
    assert far(exact.grad, dry.grad) > 1e-3
    for engine in (Backprop(micro_batch=3), Checkpointed(micro_batch=2), Structured()):
        loss = engine.loss_of(task)
        assert far(engine(loss, params, batch).grad, exact.grad) < 1e-12
    engine = Forward(tangents=2, micro_batch=2)
    directions = Fresh(k=3).of(Order(1, 1, 1, tuple(params), params))
    found = engine(task.loss, params, batch, directions, task.head)
    body = {n: g for n, g in exact.grad.items() if n not in task.head}
    expected = directions.project(body)
    assert float((found.slopes_K - expected).norm() / expected.norm()) < 1e-9


@pytest.mark.parametrize(("family", "causal"), [("bert", False), ("gpt2", True)])
@pytest.mark.parametrize(
    "way",
    [
        (Forward(), Fresh(k=2, head_k=8)),
        (Forward(), Basis(head_k=8)),
        (Backprop(), Fresh(head_k=8)),
    ],
    ids=lambda way: f"{way[0].kind}-{way[1].kind}",
)
def test_the_server_replays_a_models_training_bit_for_bit(family, causal, way):
    engine, directions = way
    task = tiny_task(family, TinyLora(r=2, u=3), causal, dtype=torch.float32)
    view = TaskView(task.loss, task.loss_recomputed, task.head)
    codec = Scalars()
    train = Trainer(
        LocalTraining(epochs=2, batch_size=3), engine, codec, view, directions=directions
    )
    order = Order(3, 1, 2, tuple(task.params), moved(task.params))
    data = ClientData(
        tiny_examples(causal=causal, types=family == "bert"), np.arange(7), np.arange(0)
    )
    sent, own = trained(train, order, data)
    received = replay(
        train, order, codec.decode(codec.encode(sent, ClientContext(order=order)), order)
    )
    assert trees.norm(own) > 0
    assert trees.digest(received.grad) == trees.digest(own)
