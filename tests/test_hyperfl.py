"""A network that makes adapters: what its gradient tells, what travels, and what a client keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import forefed
from forefed.config.config import configure
from forefed.config.reveals import reveals
from forefed.core.hyper import BIAS, EMBEDDING, INSIDE, OUTSIDE, SHIFT, features, generated
from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.run.simulate import Rows, Simulation

D, R, O, W = 6, 2, 3, 5
NETWORK = tuple(f"m.{part}" for part in (EMBEDDING, INSIDE, SHIFT, OUTSIDE, BIAS))
HEAD = ("head.weight",)


def first() -> Params:
    shapes = dict(zip(NETWORK, [(4,), (W, 4), (W,), (O * R, W), (O * R,)], strict=True))
    drawn = {n: 0.5 * Key(1).fold(n).normal(shape).double() for n, shape in shapes.items()}
    return {**drawn, HEAD[0]: torch.zeros(O, 2, dtype=torch.float64)}


def made(params: Params) -> torch.Tensor:
    f_w = features(*(params[f"m.{part}"] for part in (EMBEDDING, INSIDE, SHIFT)))
    return generated(f_w, params[f"m.{OUTSIDE}"], params[f"m.{BIAS}"], R)


def loss_at(b_Or: torch.Tensor, head: torch.Tensor, batch: Rows) -> torch.Tensor:
    a_RD = Key(2).fold("a").normal((R, D)).double()
    z = torch.tanh(batch["x"] @ a_RD.T @ b_Or.T) @ (
        head + Key(2).fold("head").normal((O, 2)).double()
    )
    return torch.nn.functional.cross_entropy(z + batch["x"][:, :2], batch["y"])


def loss(params: Params, batch: Rows) -> torch.Tensor:
    return loss_at(made(params), params[HEAD[0]], batch)


def rows(client: int) -> dict[str, torch.Tensor]:
    key = Key(3).fold("rows", client)
    x = key.fold("x").normal((12, D)).double()
    return {"x": x, "y": (x[:, client % D] > 0).long()}


def run(rounds: int = 1, **more: Any) -> Simulation:
    return forefed.simulate(
        loss,
        first(),
        [rows(c) for c in range(3)],
        strategy="hyperfl",
        units=[NETWORK, HEAD],
        head=HEAD,
        rounds=rounds,
        **more,
    )


def test_the_networks_gradient_is_that_of_what_it_makes() -> None:
    """By the bias to 1e-9; by the matrix it has rank one, and that direction."""
    there = {n: x.clone().requires_grad_() for n, x in first().items()}
    grads = torch.autograd.grad(loss(there, rows(0)), [there[f"m.{BIAS}"], there[f"m.{OUTSIDE}"]])
    b_Or = made(first()).clone().requires_grad_()
    (g_Or,) = torch.autograd.grad(loss_at(b_Or, first()[HEAD[0]], rows(0)), [b_Or])
    assert float(g_Or.norm()) > 1e-3
    assert float((grads[0] - g_Or.flatten()).abs().max()) < 1e-9
    u, s, _ = torch.linalg.svd(grads[1])
    assert float(s[1] / s[0]) < 1e-9
    cosine = torch.nn.functional.cosine_similarity(u[:, 0], g_Or.flatten(), dim=0)
    assert abs(float(cosine)) == pytest.approx(1.0, abs=1e-9)
    assert "its bias has their gradient" in reveals(configure(sets=["strategy=hyperfl"]))


def test_equal_embeddings_make_equal_adapters() -> None:
    params, other = first(), first()
    assert torch.equal(made(params), made(other))
    other[NETWORK[0]] = other[NETWORK[0]] + 1
    assert not torch.equal(made(params), made(other))


def test_the_network_travels_and_the_embedding_and_the_head_stay() -> None:
    found = run()
    for update in found.reports[0].updates:
        assert set(update.grad or {}) == set(NETWORK[1:])
        assert update.metrics["steps"] == 2 + 5 * 2  # a head's epoch, five of the network
    for name in (NETWORK[0], *HEAD):
        assert torch.equal(found.params[name], first()[name])
        assert len({tuple(found.own(c)[name].flatten().tolist()) for c in range(3)}) == 3


def test_a_client_goes_on_from_its_embedding_and_a_run_bit_for_bit() -> None:
    """Which clients keep across a stop is the store's; who is skipped keeps its bytes."""
    two = run(rounds=2)
    seen: list[Params] = []

    def after(state: Any, report: Any) -> None:
        seen.append(dict(state.params))

    again = run(rounds=2, on_round=after)
    for name, x in two.params.items():
        assert torch.equal(x, again.params[name])
    one = run(rounds=1)
    assert all(torch.equal(one.params[n], x) for n, x in seen[0].items())
    alone = run(rounds=2, cohort=1)
    heard = {u.client for r in alone.reports for u in r.updates}
    skipped = ({0, 1, 2} - heard).pop()
    assert not alone.star.transport.store.private(skipped)  # type: ignore[union-attr]
