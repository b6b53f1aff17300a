"""Example-level differential privacy: what one example can move in a step, and in secret."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import forefed
from federation import CLASSES, World
from forefed.config.compat import conflicts
from forefed.config.config import configure
from forefed.core import trees
from forefed.core.keys import Key, Secret
from forefed.core.types import Batch, ClientContext, Order, Params, Update
from forefed.data.encoding import encode_texts
from forefed.data.examples import ClientData
from forefed.directions import Basis, Fresh
from forefed.gradients import Backprop
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView, Trainer
from forefed.local.samplers import Poisson
from forefed.models.load import load_tokenizer
from forefed.modifiers import DpExample
from forefed.optimisers import Sgd
from forefed.privacy import epsilon
from forefed.run.build import load_model
from forefed.run.simulate import Rows, Simulation
from forefed.wire import Dense, Scalars
from toy import HEAD, ToyLoss, toy_clients, toy_params, toy_task

SECRET = Secret.rehearsed(4)


def order() -> Order:
    params = toy_params()
    return Order(3, 2, 1, tuple(params), params)


def trained(
    modifiers: tuple[Any, ...],
    engine: Any,
    directions: Any,
    codec: Any,
    data: ClientData,
    steps: int = 2,
) -> Update:
    settings = LocalTraining(optimiser=Sgd(lr=0.1), sampler=Poisson(rate=1.0), max_steps=steps)
    train = Trainer(settings, engine, codec, toy_task(), modifiers, directions=directions)
    return train(order(), data, {}, SECRET)[0]


ENGINES = [
    (Backprop(), Fresh(), Dense()),
    (Forward(), Basis(), Dense()),
    (Forward(), Fresh(k=3, clamp=0), Dense()),
    (Forward(), Fresh(k=3, clamp=0, head_k=4), Scalars()),
]


@pytest.mark.parametrize(("engine", "directions", "codec"), ENGINES)
def test_without_noise_and_clip_it_is_the_plain_step(
    engine: Any, directions: Any, codec: Any
) -> None:
    """Per-example slopes sum to the batch times the mean's; and so do gradients."""
    data = toy_clients()[1]
    plain = trained((), engine, directions, codec, data)
    each = trained((DpExample(clip="none", noise_multiplier=0),), engine, directions, codec, data)
    for name in ("grad", "slopes"):
        a, b = getattr(plain, name), getattr(each, name)
        assert (a is None) == (b is None)
        for n in a or {}:
            torch.testing.assert_close(a[n], b[n], rtol=2e-6, atol=1e-9)
    assert each.metrics == {"steps": 2.0} and each.n_examples == len(data.train)


@pytest.mark.parametrize(("engine", "directions", "codec"), ENGINES)
def test_one_example_moves_a_step_by_the_clip_bound_at_most(
    engine: Any, directions: Any, codec: Any
) -> None:
    data, clip = toy_clients()[1], 1e-2
    private = (DpExample(clip=clip, noise_multiplier=0),)
    seen: list[Params] = []

    class Seen(DpExample):
        def on_sum(self, total: Params, expected: float, ctx: ClientContext, step: int) -> Params:
            seen.append(total)
            return super().on_sum(total, expected, ctx, step)

    spies = (Seen(clip=clip, noise_multiplier=0),)
    trained(spies, engine, directions, codec, data, steps=1)
    fewer = ClientData(data.examples, data.train[1:], data.test)
    trained(spies, engine, directions, codec, fewer, steps=1)
    moved = trees.norm(trees.subtract(seen[0], seen[1]))
    assert 0.99 * clip < moved <= clip * (1 + 1e-12)
    # and the noise is the clip's multiple, whatever was drawn
    noisy = trained(
        (DpExample(clip=clip, noise_multiplier=3),), engine, directions, codec, data, steps=1
    )
    quiet = trained(private, engine, directions, codec, data, steps=1)
    assert noisy.n_examples == quiet.n_examples == len(data.train)
    a, b = (x.grad or x.slopes for x in (noisy, quiet))
    assert trees.norm(trees.subtract(a, b)) > 0


class EachToy(ToyLoss):
    """The toy's loss, with that of every example."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def each(self, params: Params, batch: Batch) -> Tensor:
        self.passes += 1
        mask = batch.inputs["attention_mask"].to(self.embedding.dtype)
        x = (self.embedding[batch.inputs["input_ids"]] * mask[..., None]).sum(1)
        h = x / mask.sum(1, keepdim=True)
        for i in range(3):
            h = h + torch.tanh(h @ params[f"layer.{i}.weight"])
        logits = h @ params["head.weight"] + params["head.bias"]
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")


@pytest.mark.parametrize("codec", [Dense(), Scalars()])
def test_slopes_of_all_examples_from_one_pass_are_those_of_one_by_one(codec: Any) -> None:
    data, quiet = toy_clients()[1], (DpExample(clip=0.05, noise_multiplier=0),)
    engine = Forward(head="perturbed", micro_batch="all")
    settings = LocalTraining(optimiser=Sgd(lr=0.1), sampler=Poisson(rate=1.0), max_steps=2)
    loss = EachToy()
    found = [
        Trainer(
            settings, engine, codec, TaskView(one, one, HEAD), quiet, directions=Fresh(k=3, clamp=0)
        )(order(), data, {}, SECRET)[0]
        for one in (loss, ToyLoss())
    ]
    assert loss.passes == 2  # one for each step, of 13 rows
    a, b = (x.grad or x.slopes or {} for x in found)
    for n in a:
        torch.testing.assert_close(a[n], b[n], rtol=1e-5, atol=1e-9)


def test_a_models_loss_tells_its_examples_apart(world: World) -> None:
    config = world.config(world.root, "strategy=fedavg")
    task = load_model(config, CLASSES)
    texts = ["w5 w6", "w20 w21 w22 w23", "w40"]
    batch = encode_texts(load_tokenizer(config.model), texts, 12, None).batch(range(3))
    assert task.loss.each is not None and task.loss_recomputed.each is None
    losses = task.loss.each(task.params, batch)
    alone = [task.loss(task.params, batch.rows(i, i + 1)) for i in range(3)]
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-5, atol=1e-6)


def test_noise_has_the_stated_size_in_empty_batches_too() -> None:
    width, sigma, clip, rate, rows = 5000, 2.0, 0.5, 0.05, 10
    shares = [{"x": torch.zeros(rows, width)} for _ in range(2)]
    result = forefed.simulate(
        lambda p, b: (p["w"] * b["x"].mean(0)).sum(),
        {"w": torch.zeros(width)},
        shares,
        rounds=1,
        cohort=1,
        modifiers=[{"kind": "dp_example", "clip": clip, "noise_multiplier": sigma}],
        client={
            "optimiser": {"kind": "sgd", "lr": 1.0},
            "sampler": {"kind": "poisson", "rate": rate},
            "max_steps": 4,
        },
    )
    # four steps of independent noise sigma C / (q D), one client, whatever the batches held
    expected = 2 * sigma * clip / (rate * rows)
    assert float(result.params["w"].std()) == pytest.approx(expected, rel=0.05)


def unread(rows: Any) -> Any:
    raise AssertionError("a draw that looks at losses is none by chance alone")


def test_poisson_batches_are_drawn_in_secret_one_by_one() -> None:
    data = toy_clients()[1]
    ctx = ClientContext(order=order(), own=SECRET)
    sampler = Poisson(rate=0.3)
    settings = LocalTraining(max_steps=400)
    plan = sampler.batches(settings, data, ctx, unread)
    sizes = np.array([len(b) for b in plan])
    assert len(plan) == 400 and abs(sizes.mean() - 3.9) < 0.3 and (sizes == 0).any()
    assert abs(sizes.var() - 13 * 0.3 * 0.7) < 0.6
    other = sampler.batches(
        settings, data, ClientContext(order=order(), own=SECRET.fold(1)), unread
    )
    assert any(not np.array_equal(a, b) for a, b in zip(plan, other, strict=True))
    with pytest.raises(RuntimeError, match="no secret"):
        sampler.batches(settings, data, ClientContext(order=order()), unread)
    none = ClientData(data.examples, data.train[:0], data.test)
    assert sampler.batches(settings, none, ctx, unread) == []


def test_an_example_that_is_not_finite_counts_as_nothing() -> None:
    private = DpExample(clip=1.0, noise_multiplier=1.0)
    ctx = ClientContext(order=order(), own=SECRET)
    spoilt = private.on_example({"exact/a": torch.tensor([1.0, math.nan])}, ctx)
    assert torch.equal(spoilt["exact/a"], torch.zeros(2, dtype=torch.float64))


def loss(params: Params, batch: Rows) -> Tensor:
    return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()


def play(modifier: dict[str, Any], **settings: Any) -> Simulation:
    truth, shares = Key(5).normal((5,)), []
    for i in range(4):
        x = Key(6).fold(i).normal((30, 5))
        shares.append({"x": x, "y": x @ truth})
    client = {
        "optimiser": {"kind": "sgd", "lr": 0.05},
        "sampler": {"kind": "poisson", "rate": 0.2},
        "max_steps": 5,
    }
    return forefed.simulate(
        loss,
        {"w": torch.zeros(5)},
        shares,
        modifiers=[modifier],
        client=client,
        rounds=4,
        cohort=2,
        **settings,
    )


def test_it_learns_at_a_stated_cost() -> None:
    found = play({"kind": "dp_example", "clip": 2.0, "target_epsilon": 8.0, "delta": 1e-3})
    truth = Key(5).normal((5,))
    assert torch.norm(found.params["w"] - truth) < 0.8 * torch.norm(truth)
    made = [x for r in found.reports for x in r.releases]
    assert {(x.unit, x.q, x.count, x.cap) for x in made} == {("example", 0.2, 5, None)}
    assert 7.9 < epsilon(made, 1e-3) <= 8.0
    assert "server included" in made[0].adversary
    assert all(u.n_examples == 30 for r in found.reports for u in r.updates)


def test_slopes_that_the_server_replays_are_the_noisy_ones() -> None:
    noisy = {"kind": "dp_example", "clip": 1.0, "noise_multiplier": 1.0}
    directions = {"k": 2}
    own = play(noisy, strategy="fedfgd", directions=directions, codec="scalars")
    dense = play(noisy, strategy="fedfgd", directions=directions, codec="dense")
    assert all(r.releases for r in own.reports)
    assert not torch.equal(own.params["w"], torch.zeros(5))
    assert torch.norm(own.params["w"] - dense.params["w"]) < 1e-4


NOISY = 'modifiers=[{kind="dp_example", noise_multiplier=1.0}]'
SAMPLED = "client={max_steps = 4, sampler = {kind = 'poisson'}}"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ([NOISY, SAMPLED], ""),
        ([NOISY, SAMPLED, "aggregator=median"], ""),  # noise is added before anybody adds up
        ([NOISY], "set client.sampler = 'poisson'"),
        (['modifiers=["dp_example"]', SAMPLED], "needs either noise_multiplier"),
        (
            ['modifiers=[{kind="dp_example", target_epsilon=1, clip="none"}]', SAMPLED],
            "without a clip",
        ),
        ([NOISY, SAMPLED, "guard=held_out"], "set guard.kind = 'none'"),
        (
            [NOISY, SAMPLED, "strategy=fedfgd", "engine.sub_batches=2"],
            "engine.sub_batches has no parts",
        ),
    ],
)
def test_what_would_let_out_more_is_refused(sets: list[str], said: str) -> None:
    found = [c for c in conflicts(configure(sets=["strategy=fedavg", *sets]))]
    found = [c for c in found if c.startswith("modifiers: 'dp")]
    assert [said in c for c in found] == ([True] if said else [])
