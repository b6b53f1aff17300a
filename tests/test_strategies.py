"""The baselines: hand-computed steps, and what each becomes when its one idea is taken out."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from forefed.config.compat import check
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Batch, ClientContext, Order, Params, Unit
from forefed.data.examples import ClientData, Examples
from forefed.federation.star import RunState, Star
from forefed.gradients.backprop import Backprop
from forefed.gradients.forward import Forward
from forefed.local import TaskView, Trainer, replay
from forefed.models.adapters import Lora
from forefed.modifiers import Proximal
from forefed.run import Config, configure
from forefed.run.simulate import star_over
from forefed.strategies import STRATEGIES
from forefed.wire import Scalars
from tiny import tiny_examples, tiny_task
from toy import HEAD, SIZES, ToyLoss, toy_clients, toy_params, toy_task, toy_units, trained

DOUBLE = torch.float64


def config(name: str, *sets: str) -> Config:
    """A strategy as a user gets it."""
    chosen = configure(sets=[f"strategy={name}", *sets])
    check(chosen)
    return chosen


def trainer(c: Config, task: TaskView | None = None) -> Trainer:
    task = task or toy_task(DOUBLE)
    return Trainer(c.client, c.engine, c.codec, task, c.modifiers, directions=c.directions)


def federation(c: Config, cohort: int = 6, units: tuple[Unit, ...] | None = None) -> Star:
    """The slots that a configuration fills, on the toy world."""
    c = c.model_copy(update={"seed": 4, "cohort": cohort})
    world = ToyLoss(DOUBLE), toy_params(DOUBLE), toy_clients()
    return star_over(c, *world, units or toy_units(), HEAD)


def play(loop: Star, rounds: int = 1, params: Params | None = None) -> RunState:
    state = RunState(0, params or toy_params(DOUBLE))
    for _ in range(rounds):
        state, report = loop.round(state)
        assert not report.lost
    return state


def far(a: Params, b: Params) -> float:
    return trees.norm(trees.subtract(a, b)) / trees.norm(b)


def pooled_gradient() -> Params:
    leaves = {n: x.clone().requires_grad_(True) for n, x in toy_params(DOUBLE).items()}
    ToyLoss()(leaves, toy_clients()[0].examples.batch(range(sum(SIZES)))).backward()
    return {n: x.grad for n, x in leaves.items()}


# FedAvg and FedProx on four quadratics a (w - b)^2 / 2, one client each


class Quadratics:
    """The label of an example says whose quadratic it is."""

    a, b = torch.tensor([1.0, 2.0, 5.0, 0.5]), torch.tensor([0.0, 1.0, -2.0, 4.0])

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        a, b = self.a.double()[batch.labels], self.b.double()[batch.labels]
        return (a * (params["w"] - b) ** 2 / 2).mean()

    def weight(self, batch: Batch) -> int:
        return batch.size


def fixed_point(*sets: str) -> float:
    """Where rounds lead: one of them is an affine map of w, so two starts say it."""
    four = np.arange(4)
    examples = Examples(
        tokens=np.zeros(4, np.int32),
        types=None,
        offsets=np.arange(5),
        labels=four,
        n_bytes=np.ones(4, np.int64),
        pad_id=0,
    )
    clients = [ClientData(examples, four[i : i + 1], four[:0]) for i in range(4)]
    chosen = config(*sets).model_copy(update={"seed": 4, "cohort": 4})
    loop = star_over(chosen, Quadratics(), {"w": torch.zeros((), dtype=DOUBLE)}, clients)
    ends = [
        float(play(loop, 1, {"w": torch.tensor([w], dtype=DOUBLE)}).params["w"]) for w in (0.0, 1.0)
    ]
    return ends[0] / (1 - (ends[1] - ends[0]))


def sgd(rate: float) -> list[str]:
    return ["client.optimiser=sgd", f"client.optimiser.lr={rate}"]


def test_fedavg_drifts_with_local_steps() -> None:
    optimum = float((Quadratics.a * Quadratics.b).sum() / Quadratics.a.sum())
    assert optimum == pytest.approx(-0.705882, abs=1e-6)
    assert fixed_point("fedavg", *sgd(0.05)) == pytest.approx(optimum, abs=1e-6)
    drifted = fixed_point("fedavg", *sgd(0.05), "client.epochs=20")
    assert drifted == pytest.approx(0.1627, abs=5e-5)


@pytest.mark.parametrize(
    ("mu", "rate", "where", "off"),
    [(0, 0.05, 0.1627, 5e-5), (0.1, 0.05, 0.1467, 5e-5), (1, 0.05, 0.0131, 5e-5),
     (10, 0.05, -0.485, 5e-4), (100, 0.005, -0.679, 5e-4)],
)  # fmt: skip
def test_fedprox_drifts_less_the_stronger_it_pulls(
    mu: float, rate: float, where: float, off: float
) -> None:
    sets = [*sgd(rate), "client.epochs=20", f"client.proximal={mu}"]
    assert fixed_point("fedprox", *sets) == pytest.approx(where, abs=off)


def test_fedprox_without_a_pull_is_fedavg() -> None:
    one_head = ("start.folds=1", "start.folds_rate=1")  # several were measured for FedAvg alone
    plain, pulled = config("fedavg", *one_head), config("fedprox", "client.proximal=0")
    same = {"strategy": plain.strategy, "modifiers": ()}
    assert pulled.model_copy(update=same) == plain and pulled.modifiers == (Proximal(mu=0.0),)
    assert config("fedprox").modifiers == (Proximal(mu=0.01),)
    few = ["client.batch_size=4", "client.epochs=2"]
    ends = [
        trees.digest(play(federation(config(*s, *few)), 2).params)
        for s in (["fedavg"], ["fedprox", "client.proximal=0"], ["fedprox"])
    ]
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize("engine", ["backprop", "forward", "finite_difference"])
def test_the_server_replays_the_pull_bit_for_bit(engine: str) -> None:
    sets = [f"engine={engine}", "codec=scalars", "directions.head_k=8", "client.batch_size=4"]
    task, own_changes = toy_task(torch.float32), set()
    for mu in (0.0, 1.0):
        train = trainer(config("fedprox", *sets, f"client.proximal={mu}"), task)
        asked = Order(99, 3, 1, tuple(toy_params()), toy_params(torch.float32))
        update, own = trained(train, asked, toy_clients()[1])
        received = replay(
            train,
            asked,
            train.codec.decode(train.codec.encode(update, ClientContext(order=asked)), asked),
        )
        assert trees.digest(received.grad) == trees.digest(own)
        assert update.grad is None
        own_changes.add(trees.digest(own))
    assert len(own_changes) == 2


def test_the_logged_loss_is_without_the_pull() -> None:
    """Two steps over one batch: the second sees the loss of the client's own parameters."""
    sets = [*sgd(0.5), "client.batch_size='all'", "client.epochs=2", "client.proximal=10"]
    data = toy_clients()[1]
    order = Order(99, 1, 1, tuple(toy_params()), toy_params(DOUBLE))
    update, _ = trainer(config("fedprox", *sets))(order, data, {})
    batch, loss = data.examples.batch(data.train), ToyLoss()
    first = Backprop()(loss, order.params, batch)
    second = loss(trees.step(order.params, first.grad, 0.5), batch)
    assert update.metrics["loss"] == pytest.approx((first.loss + float(second)) / 2, rel=1e-12)


def test_a_pull_that_could_do_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"'proximal' pulls back"):
        config("fedprox", "client.max_steps=1")
    shared = ["engine=forward", "directions.shared=true", "codec=scalars", *sgd(0.1)]
    check(config("fedavg", *shared))
    with pytest.raises(UserError, match=r"without the modifier 'proximal'"):
        config("fedprox", *shared)


# One step of the server


def test_fedsgd_is_a_step_along_the_pooled_gradient() -> None:
    loop = federation(config("fedsgd", "server=sgd", "server.lr=0.2"))
    stepped = trees.step(toy_params(DOUBLE), pooled_gradient(), 0.2)
    assert far(play(loop).params, stepped) < 1e-12
    fedavg = ["fedavg", *sgd(0.2), "client.batch_size='all'"]
    assert far(play(federation(config(*fedavg)), 3).params, play(loop, 3).params) < 1e-12


ADAPTIVE = {
    # of delta after one step, with m = (1 - beta1) delta and v = (1 - beta2) delta^2
    "fedadam": lambda d: 0.1 * d / (0.1 * abs(d) + 1e-3),
    "fedyogi": lambda d: 0.1 * d / (0.1 * abs(d) + 1e-3),
    "fedadagrad": lambda d: d / (abs(d) + 1e-3),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_first_step_of_an_adaptive_server(name: str) -> None:
    """The mean change of FedAvg's clients, through the rule, with the rates of body and head."""
    start = toy_params(DOUBLE)
    change = trees.subtract(start, play(federation(config("fedavg"))).params)
    moved = trees.subtract(start, play(federation(config(name))).params)
    for n, x in moved.items():
        rate = 0.1 if n in HEAD else 0.01
        expected = rate * ADAPTIVE[name](change[n])
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match=rf"would not be {name} any more"):
        configure(sets=[f"strategy={name}", "server=sgd"])


# Splits


@pytest.mark.parametrize("pair", [("fedavg_split", "fedavg"), ("fedyogi_split", "fedyogi")])
def test_a_split_of_one_unit_is_none(pair: tuple[str, str]) -> None:
    names = tuple(n for n in toy_params() if n not in HEAD)
    one = (Unit("body", names, 0, 75), toy_units()[-1])
    ends = [play(federation(config(s), units=one), 2).params for s in pair]
    assert trees.digest(ends[0]) == trees.digest(ends[1])
    alone = [play(federation(config(s), cohort=1), 2).params for s in pair]
    assert trees.digest(alone[0]) == trees.digest(alone[1])
    split = play(federation(config(pair[0])), 2).params
    assert trees.digest(split) != trees.digest(ends[0])


def test_a_split_client_has_the_full_gradient_of_its_units() -> None:
    loop = federation(config("fedavg_split", *sgd(1.0), "client.batch_size='all'"))
    seen = set()
    for client, order in loop.plan(RunState(0, toy_params(DOUBLE))).items():
        data = toy_clients()[client]
        update, _ = loop.transport.client(order, data, {}, None)  # type: ignore[attr-defined]
        assert set(order.assigned) >= HEAD and len(order.assigned) == 3
        if len(data.train):
            whole = Backprop()(ToyLoss(), order.params, data.examples.batch(data.train)).grad
            assert far(update.grad, trees.pick(whole, order.assigned)) < 1e-12
            seen.update(order.assigned)
    assert seen == set(toy_params())


def test_a_backward_pass_ends_at_the_lowest_unit() -> None:
    """Bytes that autograd keeps for the units of the first and of the last of eight blocks."""
    task = tiny_task("bert", Lora(), n_layers=8)
    batch = tiny_examples().batch(range(7))

    def kept(depth: int) -> int:
        names = [n for u in task.units if u.depth == depth for n in u.params]
        storages: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storages[x.data_ptr()] = x.nbytes
            return x

        leaves = {n: task.params[n].requires_grad_() for n in names}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            task.loss({**task.params, **leaves}, batch)
        return sum(storages.values())

    assert kept(7) < kept(0) / 2


def test_recomputing_changes_the_engine_alone() -> None:
    plain, recomputed = config("fedavg"), config("fedavg_checkpointed")
    changed = {"strategy": plain.strategy, "engine": plain.engine}
    assert recomputed.engine.kind == "checkpointed"
    assert recomputed.model_copy(update=changed) == plain


# Differences of the loss


def mezo(train: Trainer, data: ClientData, steps: int = 1) -> Params:
    """The client's change, by hand: central differences along its own directions."""
    order = Order(99, 1, 1, tuple(toy_params()), toy_params(DOUBLE))
    params = dict(order.params)
    directions = train.directions.of(order)
    for step, rows in enumerate(train.batches(order, data)[:steps]):
        batch = data.examples.batch(rows)
        v = directions.at(step).tangents(params, range(1))
        above, below = ({n: x + e * v[n][0] for n, x in params.items()} for e in (1e-2, -1e-2))
        slope = (ToyLoss()(above, batch) - ToyLoss()(below, batch)) / 2e-2
        params = {n: x - 0.03 * slope * v[n][0] for n, x in params.items()}
    return trees.subtract(order.params, params)


def test_fedmezo_by_hand_and_its_limits() -> None:
    data = toy_clients()[1]
    order = Order(99, 1, 1, tuple(toy_params()), toy_params(DOUBLE))

    def change(*sets: str, **replaced: Any) -> Params:
        settings = [*sgd(0.03), "directions.clamp=0", "client.batch_size=4", *sets]
        train = replace(trainer(config("fedmezo", *settings)), **replaced)
        update, _ = train(order, data, {})
        assert update.grad is not None
        return update.grad

    plain = trainer(config("fedmezo", "client.batch_size=4"))
    assert far(change(), mezo(plain, data, 4)) < 1e-10
    assert trees.norm(change("client.optimiser.lr=0")) == 0
    exact = Forward(head="perturbed")
    slopes = change(engine=exact)
    errors = [far(change(f"engine.eps={eps}"), slopes) for eps in (1e-2, 1e-3, 1e-4)]
    assert errors[2] < 1e-6
    for larger, smaller in pairwise(errors):
        assert 50 < larger / smaller < 200  # of second order in eps

    codec = Scalars()
    scalars = replace(plain, codec=codec)
    update, own = trained(scalars, order, data)
    received = replay(
        scalars, order, codec.decode(codec.encode(update, ClientContext(order=order)), order)
    )
    assert trees.digest(received.grad) == trees.digest(own)
    assert {n: tuple(x.shape) for n, x in (update.slopes or {}).items()} == {"body": (4, 1)}


def test_fedmezo_can_leave_the_head_its_own_gradient() -> None:
    data, order = toy_clients()[1], Order(99, 1, 1, tuple(toy_params()), toy_params(DOUBLE))
    sets = [*sgd(1.0), "client.batch_size='all'", "engine.head=exact"]
    update, _ = trainer(config("fedmezo", *sets))(order, data, {})
    whole = Backprop()(ToyLoss(), order.params, data.examples.batch(data.train)).grad
    assert far(trees.pick(update.grad, HEAD), trees.pick(whole, HEAD)) < 1e-12


@pytest.mark.parametrize("codec", ["scalars", "dense"])
def test_baffle_by_hand(codec: str) -> None:
    """Averaged numbers along common directions are those of the pooled loss."""
    c = config("baffle", "server=sgd", "server.lr=0.5", f"codec={codec}", "directions.clamp=0")
    start = toy_params(DOUBLE)
    asked = Order(Key(4).value, 1, 1, tuple(start), start)
    directions = c.directions.of(asked)
    v = directions.tangents(start, range(10))
    pooled = toy_clients()[0].examples.batch(range(sum(SIZES)))
    expected = {n: torch.zeros_like(x) for n, x in start.items()}
    sizes = []
    for k in range(10):
        above, below = ({n: x + e * v[n][k] for n, x in start.items()} for e in (1e-2, -1e-2))
        slope = float(ToyLoss()(above, pooled) - ToyLoss()(below, pooled)) / 2e-2
        expected = {n: x + slope * v[n][k] / 10 for n, x in expected.items()}
        sizes.append(abs(slope) * trees.norm({n: x[k] for n, x in v.items()}))
    assert max(sizes) < 20 * sorted(sizes)[5]  # every direction contributes
    loop = federation(c)
    moved = trees.subtract(start, play(loop).params)
    assert far(moved, {n: 0.5 * x for n, x in expected.items()}) < 1e-6  # slopes travel in float32
    orders = loop.plan(RunState(0, start)).values()
    alike = [c.directions.of(o) for o in orders]
    assert len({trees.digest(d.tangents(start, range(10))) for d in alike}) == 1


def test_baffle_sends_ten_numbers() -> None:
    c = config("baffle")
    order = Order(99, 1, 1, tuple(toy_params()), toy_params(DOUBLE))
    update, _ = trainer(c)(order, toy_clients()[1], {})
    assert {n: tuple(x.shape) for n, x in (update.slopes or {}).items()} == {"body": (1, 10)}
    assert update.grad is None


# All of them


def test_the_page_has_a_line_on_each() -> None:
    page = (Path(__file__).parents[1] / "docs" / "strategies.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(STRATEGIES)


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if "adapter" not in s.fixed])
def test_every_strategy_is_a_configuration_that_works(name: str) -> None:
    """(Those that are about LoRA's factors want a model that has some: test_conformance.py.)"""
    c = config(name)
    assert not c.client.keep_optimiser
    state = play(federation(c), 2)
    assert trees.all_finite(state.params)
    if not state.pending:
        assert trees.digest(state.params) != trees.digest(toy_params(DOUBLE))
