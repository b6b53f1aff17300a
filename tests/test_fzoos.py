"""FZooS: surrogates through all losses that were asked, and what clients send of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import forefed
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Key
from forefed.core.types import Batch, ClientContext, Order, Update
from forefed.gradients import matern
from forefed.gradients.surrogate import Surrogate
from forefed.modifiers import Fzoos
from forefed.wire import Dense
from test_simulate import START, clients, squared

RIDGE = 1e-6
D, CLIENTS = 10, 3
FEW = {"drawn": 10, "nearest": 60}


def test_two_points_by_hand() -> None:
    """At -1 and 1 with l = sqrt(5): a = 2 between them, and a = 1 from 0 to either."""
    x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([2.0, 6.0])
    k2 = (1 + 2 + 4 / 3) * math.exp(-2)
    torch.testing.assert_close(
        matern.kernel(x, x, math.sqrt(5)), torch.tensor([[1, k2], [k2, 1]], dtype=torch.float64)
    )
    alpha = 2 / (1 - k2 + 0.5)  # of the values about their mean, -2 and 2
    found = matern.coefficients(x, y, math.sqrt(5), 0.5)
    torch.testing.assert_close(found, torch.tensor([-alpha, alpha], dtype=torch.float64))
    slope = matern.gradient(torch.zeros(1), x, found, math.sqrt(5))
    assert float(slope) == pytest.approx(2 * alpha * 2 / 3 * math.exp(-1), rel=1e-12)
    # of the variance, where nothing and where all is known
    far = matern.doubt(torch.tensor([[100.0], [1.0]]), x, 1.0, 1e-9)
    torch.testing.assert_close(
        far, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_the_most_doubtful_of_the_drawn_points_are_asked() -> None:
    known, at, key = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), Key(4), Key(5)
    start = at.normal((3,))
    some, every = (
        Surrogate(drawn=20, queries=n, radius=2.0).recalling({}, key)._around(start, known)
        for n in (4, 20)
    )
    doubt = matern.doubt(every, torch.cat([known, start[None]]), 1.0, RIDGE)
    assert torch.equal(some, every[:4]) and float(doubt[:4].min()) >= float(doubt[4:].max())
    assert float(doubt.max() - doubt.min()) > 1e-3 and (every - start).abs().max() <= 2.0


def cloud(seed: int, count: int, size: int, radius: float) -> Tensor:
    """Points, uniform in a ball."""
    key = Key(seed)
    z = key.fold("z").normal((count, size)).double()
    far = key.fold("u").uniform((count, 1)).double() ** (1 / size)
    return radius * far * z / z.norm(dim=1, keepdim=True)


def test_its_gradient_is_that_of_its_mean() -> None:
    x, at = cloud(1, 12, 4, 1.0), cloud(2, 1, 4, 0.5)[0]
    alpha = matern.coefficients(x, (x**3).sum(1), 0.8, RIDGE)
    steps = 1e-5 * torch.eye(4, dtype=torch.float64)
    either = [matern.kernel(at + sign * steps, x, 0.8) @ alpha for sign in (1, -1)]
    ours = matern.gradient(at, x, alpha, 0.8)
    torch.testing.assert_close(ours, (either[0] - either[1]) / 2e-5, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("radius", "asked", "least"), [(0.1, 50, 0.999), (0.1, 100, 0.9999), (0.5, 100, 0.985)]
)
def test_the_specification_s_cosines(radius: float, asked: int, least: float) -> None:
    """Quadratics of 20 numbers, kernel of length 1, points within a radius of where it stands."""
    for seed in range(3):
        key = Key(seed)
        root, slope = key.normal((20, 20)).double(), key.fold("b").normal((20,)).double()
        x = cloud(seed, asked, 20, radius)
        y = (x @ root).square().sum(1) / 40 + x.square().sum(1) / 2 + x @ slope
        alpha = matern.coefficients(x, y, 1.0, RIDGE)
        found = matern.gradient(torch.zeros(20), x, alpha, 1.0)
        assert torch.nn.functional.cosine_similarity(found, slope, 0) > least


def test_features_are_the_kernel_s_and_add_up() -> None:
    drawn = matern.features(Key(1), 20_000, 3, 0.7)
    x = cloud(3, 6, 3, 1.0)
    error = (drawn.of(x) @ drawn.of(x).T - matern.kernel(x, x, 0.7)).abs().max()
    assert error < 4 / math.sqrt(20_000)  # of a mean of M products of size at most 2
    some = matern.features(Key(1), 64, 3, 0.7)
    fits = [some.fit(x, (i + x).square().sum(1), RIDGE) for i in range(4)]
    mean = some.gradient(x[0], torch.stack(fits).mean(0))
    parts = torch.stack([some.gradient(x[0], nu) for nu in fits]).mean(0)
    torch.testing.assert_close(mean, parts, rtol=0, atol=1e-12)
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    either = [some.of(x[0] + sign * steps) @ fits[0] for sign in (1, -1)]
    torch.testing.assert_close(
        some.gradient(x[0], fits[0]), (either[0] - either[1]) / 2e-6, rtol=1e-6, atol=1e-7
    )


def bowls(het: float = 1.0) -> tuple[forefed.BlackBox, list[dict[str, Any]], Tensor, list[int]]:
    """Quadratics with centres of their own, their clients, the optimum of the mean, and the sizes
    of calls."""
    key, asked = Key(7), list[int]()
    widths = [1 + 3 * key.fold(i, "h").uniform((D,)).double() for i in range(CLIENTS)]
    centres = [het * key.fold(i, "c").normal((D,)).double() for i in range(CLIENTS)]

    def losses(params: Any, batch: Any) -> Any:
        asked.append(len(params["x"]))
        i = int(batch["i"][0])
        return (widths[i].numpy() * (params["x"] - centres[i].numpy()) ** 2).sum(1) / 2

    optimum = sum(h * c for h, c in zip(widths, centres, strict=True)) / sum(widths)
    rows = [{"i": torch.tensor([i])} for i in range(CLIENTS)]
    return forefed.BlackBox(losses, batched=True), rows, optimum, asked


def learned(gamma: float | None, rounds: int = 5, **more: Any) -> forefed.run.Simulation:
    box, rows, _, _ = bowls()
    sets: dict[str, Any] = {"modifiers": [] if gamma is None else [{"kind": "fzoos"}]}
    if gamma is not None:
        sets["modifiers"][0] |= {"gamma": gamma, "features": 200}
    sets["client"] = {"optimiser": {"lr": 0.05}, **more.pop("client", {})}
    sets |= {"rounds": rounds, **more}
    return forefed.simulate(box, {"x": torch.zeros(D)}, rows, strategy="fzoos", **sets)


def test_others_surrogates_free_a_client_of_its_drift() -> None:
    _, _, optimum, _ = bowls()
    corrected, alone = (learned(g, 4, engine=FEW).params["x"] for g in (1.0, 0.0))
    far = [float((x - optimum).norm() / optimum.norm()) for x in (corrected, alone)]
    assert far[0] < 0.65 * far[1] and far[0] < 0.4


def test_without_correction_everybody_goes_by_itself() -> None:
    few = {"client": {"epochs": 2}}
    alone, without = (learned(g, 2, **few).params for g in (0.0, None))
    assert trees.digest(alone) == trees.digest(without)


def test_the_server_has_the_mean_of_what_was_sent() -> None:
    result = learned(1.0, rounds=2)
    sent = [u.beside["fzoos/nu"].double() for u in result.reports[-1].updates]
    (nu,) = result.state.of("modifier.fzoos").values()
    torch.testing.assert_close(nu.double(), torch.stack(sent).mean(0), rtol=0, atol=1e-6)
    assert float(nu.norm()) > 0
    one = result.reports[0].bytes_up / CLIENTS
    assert 4 * (D + 200) < one < 4 * (D + 200) + 400


def test_a_memory_needs_fewer_questions_than_parameters() -> None:
    """Two questions a step over ten parameters: after a round the gradient is known."""
    box, rows, _, asked = bowls()
    engine, kept, at = Surrogate(queries=2, micro_batch=None), {}, torch.full((D,), 0.5)
    batch = Batch(rows[0], labels=torch.zeros(1))
    for step in range(10):
        there = {"x": at + 0.002 * step}
        found = engine.recalling(kept, Key(step))(box, there, batch)
        kept = found.kept
    assert sum(asked) == 30 and found.forwards == 3.0
    key = Key(7).fold(0, "h").uniform((D,)), Key(7).fold(0, "c").normal((D,))
    exact = (1 + 3 * key[0]) * (there["x"] - key[1])
    assert torch.nn.functional.cosine_similarity(found.grad["x"], exact, 0) > 0.99
    assert found.loss == pytest.approx(float(box(there, batch)))
    first = engine.recalling({}, Key(9))(box, there, batch)
    assert torch.nn.functional.cosine_similarity(first.grad["x"], exact, 0) < 0.9
    few = Surrogate(queries=2, micro_batch=None, memory=5).recalling(kept, Key(9))
    assert len(few(box, there, batch).kept["points"]) == 5


def test_a_loss_of_torch_gives_what_a_black_box_gives() -> None:
    def hidden(params: Any, batch: Any) -> Any:
        tensors = {n: torch.tensor(x) for n, x in params.items()}
        return squared(tensors, {n: torch.tensor(x) for n, x in batch.items()}).numpy()

    sets: dict[str, Any] = {"strategy": "fzoos", "rounds": 2, "client": {"epochs": 2}}
    seen = forefed.simulate(squared, START, clients(5, 8), **sets, engine={"micro_batch": "all"})
    asked = forefed.simulate(forefed.BlackBox(hidden), START, clients(5, 8), **sets)
    assert trees.digest(seen.params) == trees.digest(asked.params) != trees.digest(START)


def test_what_is_not_finite_is_no_point_and_moves_nothing() -> None:
    def nowhere(params: Any, batch: Any) -> Any:
        return np.full(len(params["x"]), np.nan)

    _, rows, _, _ = bowls()
    box = forefed.BlackBox(nowhere, batched=True)
    result = forefed.simulate(box, {"x": torch.ones(D)}, rows, strategy="fzoos", rounds=2)
    assert torch.equal(result.params["x"], torch.ones(D))


def test_an_answer_without_its_surrogate_is_refused() -> None:
    params = {"w": torch.zeros(3)}
    beside = {f"fzoos/{n}": x for n, x in Fzoos(features=4).beside(params, frozenset()).items()}
    order = Order(1, 1, 0, ("w",), params, beside=beside)
    whole = Update(0, 1, {"w": torch.ones(3)}, beside={"fzoos/nu": torch.ones(4)})
    codec, ctx = Dense(), ClientContext(order=order)
    read = codec.decode(codec.encode(whole, ctx), order)
    assert torch.equal(read.beside["fzoos/nu"], torch.ones(4)) and read.grad is not None
    assert read.grad.keys() == {"w"}
    for wrong in ({}, {"fzoos/nu": torch.ones(5)}, {"other/nu": torch.ones(4)}):
        with pytest.raises(ProtocolError, match="client 0: "):
            codec.decode(codec.encode(replace(whole, beside=wrong), ctx), order)
    with pytest.raises(ProtocolError, match="unexpected tensors"):
        codec.decode(codec.encode(whole, ctx), replace(order, beside={}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client": {"batch_size": 4}}, "client.batch_size = 'all'"),
        ({"modifiers": [], "adapter": {"dropout": 0.1}}, "simulate has a loss"),
        ({"strategy": "fedavg", "modifiers": ["fzoos"]}, "set engine.kind = 'surrogate'"),
        ({"strategy": "fedavg", "codec": "sparse", "modifiers": ["fzoos"]}, "does not carry"),
        ({"attack": {"kind": "sign_flip", "hostile": 1}}, "neither made noisy nor forged"),
        ({"params": {"x": torch.zeros(5001)}}, "5,001 parameters, at most 5,000"),
    ],
)
def test_mistakes_are_one_sentence(change: dict[str, Any], words: str) -> None:
    box, rows, _, _ = bowls()
    called = {"strategy": "fzoos", "params": {"x": torch.zeros(D)}, **change}
    with pytest.raises(UserError, match=words):
        forefed.simulate(box, clients=rows, **called)
