"""tpSGD: layers of a head that learn without one another."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Batch, Params
from forefed.gradients.backprop import Backprop

LOSS = forefed.TargetProjection(features=3, widths=(4, 5), classes=2)


def gradient(loss: forefed.TargetProjection, params: Params, x: Tensor, labels: Tensor) -> Params:
    batch = Batch({"x": x, "labels": labels}, labels)
    return Backprop(micro_batch=None)(loss, params, batch).grad


def test_a_step_by_hand() -> None:
    one = forefed.TargetProjection(features=1, widths=(1,), classes=2)
    params = {"0.weight": torch.tensor([[0.5]]), "0.bias": torch.tensor([0.0])}
    params |= {"1.weight": torch.tensor([[1.0], [3.0]]), "1.bias": torch.zeros(2)}
    found = gradient(one, params, torch.tensor([[2.0]]), torch.tensor([1]))
    y = math.tanh(1.0)
    goal = float(one.targets(0)[0, 1])
    assert abs(goal) == pytest.approx(0.9)
    delta = (goal - y) * (1 - y * y)
    assert float(found["0.weight"]) == pytest.approx(-delta * 2, rel=1e-5)
    assert float(found["0.bias"]) == pytest.approx(-delta, rel=1e-5)
    first = 1 / (1 + math.exp(3 * y - y))  # of class 0, whose logit is y; the label's is 3 y
    assert found["1.weight"].flatten().tolist() == pytest.approx([first * y, -first * y], rel=1e-5)
    signed = forefed.TargetProjection(features=1, widths=(1,), classes=2, norm="l1")
    found = gradient(signed, params, torch.tensor([[2.0]]), torch.tensor([1]))
    step = math.copysign(1 - y * y, goal - y)
    assert float(found["0.weight"]) == pytest.approx(-step * 2, rel=1e-5)


def test_no_step_needs_the_weights_behind_it() -> None:
    params, x = LOSS.first(Key(1)), Key(2).normal((6, 3))
    labels = torch.arange(6) % 2
    here = gradient(LOSS, params, x, labels)
    behind = {n: w + 1 if n[0] in "12" else w for n, w in params.items()}
    there = gradient(LOSS, behind, x, labels)
    assert all(torch.equal(here[n], there[n]) for n in ("0.weight", "0.bias"))
    assert not torch.equal(here["1.weight"], there["1.weight"])


def test_targets_are_the_run_s_key() -> None:
    again = forefed.TargetProjection(features=3, widths=(4, 5), classes=2)
    assert torch.equal(LOSS.targets(1), again.targets(1))
    other = forefed.TargetProjection(features=3, widths=(4, 5), classes=2, run=1)
    assert not torch.equal(LOSS.targets(1), other.targets(1))
    assert trees.digest({"p": LOSS.targets(0)}).startswith("28e53809d73bc49d")


def classes(spread: float) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """Ten Gaussian classes in 40 features: four clients, and 1,000 rows to test on."""
    key, parts = Key(5), []
    centres = key.fold("centre").normal((10, 40))
    for part, rows in enumerate((300, 300, 300, 300, 1000)):
        labels = torch.from_numpy(key.fold("label", part).integers(rows, 10))
        noise = key.fold("noise", part).normal((rows, 40))
        parts.append({"x": centres[labels] + spread * noise, "labels": labels})
    return parts[:4], parts[4]["x"], parts[4]["labels"]


def accuracy(spread: float, rate: float, rounds: int = 4) -> float:
    clients, x, labels = classes(spread)
    loss = forefed.TargetProjection(features=40, widths=(128, 64), classes=10)
    optimiser = {"kind": "sgd", "lr": rate, "head_lr": 0.5}
    called: dict[str, Any] = {
        "rounds": rounds,
        "client": {"batch_size": 50, "optimiser": optimiser},
    }
    start = loss.first(Key(0))
    result = forefed.simulate(loss, start, clients, head=loss.head, strategy="fedavg", **called)
    return float((loss.logits(result.params, x).argmax(1) == labels).float().mean())


def test_hidden_layers_that_learn_are_better_than_random_ones() -> None:
    trained, frozen = accuracy(1.5, 0.05), accuracy(1.5, 0.0)
    assert trained > frozen + 0.02


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(UserError, match="at least 1"):
        forefed.TargetProjection(features=3, widths=(0,), classes=2)
