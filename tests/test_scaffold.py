"""What is done against drift: SCAFFOLD and logit adjustment, by hand and as reductions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import forefed
from federation import World
from forefed.config.compat import check
from forefed.config.config import configure
from forefed.core.errors import UserError
from forefed.core.types import (
    RATE,
    Batch,
    ClientContext,
    Contribution,
    Order,
    ServerContext,
    Update,
)
from forefed.models.objectives import OBJECTIVES
from forefed.models.objectives.classes import Classes
from forefed.modifiers import LogitAdjustment

SGD = {"optimiser": {"kind": "sgd", "lr": 0.1}, "epochs": 4, "batch_size": "all"}


def bowl(params, batch):
    """Half of h (w - a)^2 by row: clients differ in their optimum and in their curvature."""
    return (batch["h"] * (params["w"] - batch["a"]) ** 2).mean() / 2


TWO = [
    {"a": torch.tensor([1.0]), "h": torch.tensor([1.0])},
    {"a": torch.tensor([-1.0]), "h": torch.tensor([5.0])},
]


def end(rounds, *modifiers, clients=TWO, **more):
    settings = {"client": SGD, "modifiers": list(modifiers), "rounds": rounds, **more}
    return forefed.simulate(bowl, {"w": torch.zeros(1)}, clients, **settings)


def test_scaffold_comes_to_the_optimum_where_averaging_does_not():
    """(1 x 1 + 5 x -1) / 6 = -2/3. Averaging stops where both clients' four steps cancel:
    (w - 1) (1 - 0.9^4) + (w + 1) (1 - 0.5^4) = 0."""
    pulls = 1 - 0.9**4, 1 - 0.5**4
    fixed = (pulls[0] - pulls[1]) / sum(pulls)
    assert float(end(12).params["w"]) == pytest.approx(fixed, abs=1e-4)
    assert abs(fixed + 2 / 3) > 0.2
    assert float(end(25, "scaffold").params["w"]) == pytest.approx(-2 / 3, abs=2e-3)


def test_the_first_round_is_averaging_and_the_second_by_hand():
    plain, first = end(1), end(1, "scaffold")
    assert torch.equal(plain.params["w"], first.params["w"])
    # c_i: the means of the gradients h (w - a) on each client's own way
    ways = [[0.0], [0.0]]
    for way, (a, h) in zip(ways, ((1.0, 1.0), (-1.0, 5.0)), strict=True):
        for _ in range(4):
            way.append(way[-1] - 0.1 * h * (way[-1] - a))
    own = [-way[-1] / (4 * 0.1) for way in ways]
    told = first.star.server.broadcast(first.state)
    assert float(told["scaffold/w"]) == pytest.approx(sum(own) / 2, rel=1e-5)
    # round 2: every step has c - c_i added
    w = sum(way[-1] for way in ways) / 2
    after = []
    for c_i, (a, h) in zip(own, ((1.0, 1.0), (-1.0, 5.0)), strict=True):
        y = w
        for _ in range(4):
            y -= 0.1 * (h * (y - a) + sum(own) / 2 - c_i)
        after.append(y)
    assert float(end(2, "scaffold").params["w"]) == pytest.approx(sum(after) / 2, rel=1e-5)


def test_steps_are_counted_alike_at_the_client_and_the_server():
    """Uneven clients, batches of two, a cap, a schedule: the mean of what clients keep is what the
    server tells."""
    rows = [1, 3, 8]
    clients = [{"a": torch.linspace(i, i + 1, n), "h": torch.ones(n)} for i, n in enumerate(rows)]
    local = {**SGD, "batch_size": 2, "epochs": 2, "max_steps": 5}
    local["optimiser"] = {**SGD["optimiser"], "schedule": ["linear"]}
    found = end(4, "scaffold", clients=clients, client=local)
    store = found.star.transport.store.states
    kept = [store[i]["modifier.scaffold/w"] for i in range(3)]
    told = found.star.server.broadcast(found.state)["scaffold/w"]
    torch.testing.assert_close(torch.stack(kept).mean(0), told, rtol=1e-4, atol=1e-6)


def test_a_rate_that_the_server_multiplies_is_walked_by_both():
    """Two steps at 3 x 0.1 along a gradient of 1: the control is that gradient, at either side."""
    config = configure(base={"client": {**SGD, "epochs": 2}, "modifiers": ["scaffold"]})
    scaffold = config.modifiers[0].solved(config, 1)
    moved = {"w": torch.full((1,), 0.6)}
    order = Order(0, 1, 0, ("w",), {"w": torch.zeros(1)}, {RATE: torch.tensor(3.0)})
    client = ClientContext(order=order)
    _, own = scaffold.on_send(Update(0, 4, moved), {}, client)
    ctx = ServerContext(round=1, key=client.key, times=3.0)
    _, sums = scaffold.on_receive(Contribution(0, 4, moved), {}, ctx)
    assert float(own["w"]) == pytest.approx(1.0) == float(sums["sum/w"])


def test_what_scaffold_cannot_work_with():
    for sets, words in (
        (["strategy=fedavg"], "sgd"),
        (["client.optimiser.kind=sgd", "codec=scalars"], "sends projections"),
        (["client.optimiser.kind=sgd", "strategy=fedavg", "channel=secure_sum"], "scaffold"),
    ):
        with pytest.raises(UserError, match=words):
            check(configure(sets=[*sets, 'modifiers=["scaffold"]']))
    later = 'modifiers=["scaffold", "momentum"]'
    with pytest.raises(UserError, match="put 'scaffold' after it"):
        check(configure(sets=["strategy=fedavg", "client.optimiser.kind=sgd", later]))


def adjusted(logits, labels, tau, counts):
    batch = Batch({}, torch.tensor(labels))
    rows = np.repeat(np.arange(len(counts)), counts)
    ctx = ClientContext(order=Order(0, 1, 0, (), {}))
    modifier = LogitAdjustment(tau=tau, smoothing=1e-9)
    batch = modifier.on_batch(batch, rows, len(counts), ctx)
    names = tuple("abc"[: len(counts)])
    return Classes(names).losses(torch.tensor(logits), batch)


def test_logit_adjustment_by_hand():
    # three rows of a and one of b: log(e^0 x 3/4 / (3/4 + e^1 x 1/4)) and the same for b
    found = adjusted([[0.0, 1.0], [0.0, 1.0]], [0, 1], 1.0, [3, 1])
    total = 0.75 + 0.25 * math.e
    expected = [-math.log(0.75 / total), -math.log(0.25 * math.e / total)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    plain = Classes(("a", "b")).losses(torch.tensor([[0.0, 1.0]]), Batch({}, torch.tensor([0])))
    assert torch.equal(adjusted([[0.0, 1.0]], [0], 0.0, [3, 1]), plain)
    # even clients: the same for all classes, which changes no loss
    even = adjusted([[0.0, 1.0]], [0], 1.0, [2, 2])
    torch.testing.assert_close(even, plain)


def test_a_client_of_one_class_moves_nothing():
    logits = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    batch = Batch({}, torch.tensor([1]))
    ctx = ClientContext(order=Order(0, 1, 0, (), {}))
    modifier = LogitAdjustment(smoothing=1e-6)
    batch = modifier.on_batch(batch, np.ones(5, dtype=np.int64), 3, ctx)
    Classes(("a", "b", "c")).losses(logits, batch).sum().backward()
    assert float(logits.grad.abs().max()) < 1e-6
    halves = [replace(batch, added=batch.added.repeat(2, 1), labels=batch.labels.repeat(2))]
    assert halves[0].rows(1, 2).added.shape == (1, 3)


def test_simulate_refuses_what_its_loss_would_not_see():
    with pytest.raises(UserError, match="add it there"):
        end(1, "logit_adjustment")


def test_without_weight_it_is_the_plain_run(world: World, tmp_path: Path) -> None:
    def digest(name: str, *sets: str) -> str:
        result = world.run(tmp_path, f"name={name}", "strategy=fedavg", *sets)
        return str(result.summary["digest"])

    plain = digest("plain")
    assert digest("none", 'modifiers=[{kind="logit_adjustment",tau=0}]') == plain
    assert digest("some", 'modifiers=["logit_adjustment"]') != plain


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("classification", torch.tensor([0, 1])),
        ("multilabel", torch.tensor([[1, 0, 1], [0, 0, 1]])),
        ("regression", torch.tensor([0.5, 1.0])),
    ],
)
def test_what_a_batch_adds_is_part_of_every_loss_of_a_text(head, labels):
    names = () if head == "regression" else ("a", "b", "c")
    objective = OBJECTIVES[head](names)
    logits = torch.linspace(-1, 1, 2 * max(len(names), 1)).reshape(2, -1)
    added = logits.square() - 0.3
    found = objective.losses(logits, Batch({}, labels, added=added, times=0.5))
    expected = objective.losses(0.5 * logits + added, Batch({}, labels))
    torch.testing.assert_close(found, expected)
