"""Optimisers: hand-computed tables, equality with torch.optim, and parameters left alone."""

import pytest
import torch

from forefed.core.keys import Key
from forefed.core.settings import parse
from forefed.optimisers import OPTIMISERS, Adagrad, Adam, AdamW, Sgd, Yogi

DOUBLE = torch.float64


def steps(optimiser, count, delta=1.3e-3):
    """Lengths of the first ``count`` steps for a constant descent direction, over its size."""
    state, params, lengths = {}, {"w": torch.zeros(1, dtype=DOUBLE)}, []
    for _ in range(count):
        state, moved = optimiser.step(state, params, {"w": torch.full((1,), delta, dtype=DOUBLE)})
        lengths.append(float(params["w"] - moved["w"]) / delta)
        params = moved
    return lengths


def test_yogi_table():
    lengths = steps(Yogi(), 200)
    assert lengths[0] == pytest.approx(0.885, abs=5e-4)
    assert [lengths[t - 1] for t in (10, 50, 200)] == pytest.approx([4.62, 5.18, 4.35], abs=5e-3)


@pytest.mark.parametrize(("delta", "ratio"), [(1e-4, 0.990), (1.3e-3, 0.885), (1e-2, 0.5)])
def test_first_adaptive_step_by_hand(delta, ratio):
    # m = 0.1 delta, v = 0.01 delta^2: step = 0.01 * 0.1 delta / (0.1 delta + 0.001)
    for optimiser in (Yogi(), Adam()):
        assert steps(optimiser, 1, delta)[0] == pytest.approx(ratio, abs=5e-4)


def test_adam_table():
    lengths = steps(Adam(), 100)
    assert [lengths[t - 1] for t in (10, 100)] == pytest.approx([4.65, 4.91], abs=5e-3)


def test_adagrad_table():
    # m = delta and v = t delta^2: step t is 0.01 / (sqrt(t) delta + tau) of delta
    assert steps(Adagrad(), 1)[0] == pytest.approx(0.01 / 2.3e-3, rel=1e-9)
    lengths = steps(Adagrad(tau=1e-12, lr=1.3e-3), 100)  # tau -> 0: lr / sqrt(t)
    assert [lengths[t - 1] for t in (1, 4, 9, 100)] == pytest.approx([1, 1 / 2, 1 / 3, 0.1])


def test_adamw_equals_torch():
    ours, w = AdamW(lr=0.01, weight_decay=0.1), Key(1).normal((7,)).double()
    theirs = torch.nn.Parameter(w.clone())
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    state, params = {}, {"w": w}
    for step in range(20):
        grad = Key(2).fold(step).normal((7,)).double()
        state, params = ours.step(state, params, {"w": grad})
        theirs.grad = grad.clone()
        reference.step()
    torch.testing.assert_close(params["w"], theirs.detach(), rtol=1e-12, atol=1e-14)


def test_momentum_equals_torch():
    ours, w = Sgd(lr=0.1, momentum=0.9, weight_decay=0.01), Key(1).normal((7,)).double()
    theirs = torch.nn.Parameter(w.clone())
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    state, params = {}, {"w": w}
    for step in range(20):
        grad = Key(2).fold(step).normal((7,)).double()
        state, params = ours.step(state, params, {"w": grad})
        theirs.grad = grad.clone()
        reference.step()
    torch.testing.assert_close(params["w"], theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", OPTIMISERS.kinds())
def test_parameters_without_a_direction_keep_their_bits(kind):
    optimiser = parse(OPTIMISERS[kind], {"kind": kind, "lr": 0.1})
    params = {"a": Key(1).normal((3,)), "b": Key(2).normal((3,))}
    state, params = optimiser.step({}, params, {"a": torch.ones(3), "b": torch.ones(3)})
    later, moved = optimiser.step(state, params, {"a": torch.ones(3)})
    assert not torch.equal(moved["a"], params["a"])
    assert torch.equal(moved["b"], params["b"])
    assert all(torch.equal(later[k], state[k]) for k in state if k.endswith("/b"))


@pytest.mark.parametrize("kind", OPTIMISERS.kinds())
def test_the_head_has_a_rate_of_its_own(kind):
    optimiser = parse(OPTIMISERS[kind], {"kind": kind, "lr": 0.1, "head_lr": 0.2})
    zero = {"a": torch.zeros(2), "h": torch.zeros(2)}
    _, moved = optimiser.step({}, zero, {n: torch.ones(2) for n in zero}, frozenset({"h"}))
    torch.testing.assert_close(moved["h"], 2 * moved["a"])


@pytest.mark.parametrize("kind", OPTIMISERS.kinds())
def test_arguments_are_not_changed(kind):
    optimiser = parse(OPTIMISERS[kind], {"kind": kind, "lr": 0.1})
    params, grad = {"a": torch.ones(2)}, {"a": torch.full((2,), 0.5)}
    state, _ = optimiser.step({}, params, grad)
    copies = {k: v.clone() for k, v in state.items()}
    optimiser.step(state, params, grad)
    assert torch.equal(params["a"], torch.ones(2)) and torch.equal(grad["a"], torch.full((2,), 0.5))
    assert all(torch.equal(state[k], copies[k]) for k in copies)
