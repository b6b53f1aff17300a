"""Gauss-Newton matrices from tangents of logits, and the server's damped steps through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from federation import World
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.types import Batch, Contribution, InTwo, Params, ServerContext
from forefed.directions.sets import BasisDirections
from forefed.gradients.forward import Forward
from forefed.gradients.gauss_newton import CURVATURE
from forefed.models.objectives.classes import Classes
from forefed.models.objectives.multilabel import MultiLabel
from forefed.modifiers import GaussNewton
from forefed.modifiers.gauss_newton import packed, solved, unpacked
from tiny import moved, tiny_examples, tiny_task
from toy import HEAD, ToyLoss, toy_clients, toy_params

WHOLE = {"max_steps": 1, "batch_size": "all", "optimiser": {"kind": "sgd", "lr": 0.5}}
FORWARD = Forward(curvature=True, emulate=False)


class InHalves(ToyLoss):
    """The toy's loss, which shows its logits."""

    def logits(self, params: Params, batch: Batch) -> Tensor:
        mask = batch.inputs["attention_mask"].to(self.embedding.dtype)
        h = (self.embedding[batch.inputs["input_ids"]] * mask[..., None]).sum(1)
        h = h / mask.sum(1, keepdim=True)
        for i in range(3):
            h = h + torch.tanh(h @ params[f"layer.{i}.weight"])
        return h @ params["head.weight"] + params["head.bias"]

    @property
    def in_two(self) -> InTwo:
        return InTwo(self.logits, Classes(("a", "b", "c")).losses)


def by_hand(logits: Any, params: Params, body: Params, batch: Batch) -> Tensor:
    """The mean of J^T (diag p - p p^T) J, J by ``torch.func.jacrev``."""

    def of(flat_D: Tensor) -> Tensor:
        found: Tensor = logits({**params, **trees.unflatten(flat_D, body)}, batch)
        return found

    at_D = trees.flatten(body)
    j_BCD = torch.func.jacrev(of)(at_D)
    p_BC = torch.softmax(of(at_D), 1)
    h_BCC = torch.diag_embed(p_BC) - p_BC[:, :, None] * p_BC[:, None]
    return torch.einsum("bcd,bce,bef->df", j_BCD, h_BCC, j_BCD) / batch.size


@pytest.mark.parametrize("tangents", [8, 200])
@pytest.mark.parametrize("rows", [2, None])
def test_it_is_the_one_by_reverse_mode(tangents: int, rows: Any) -> None:
    params, client = toy_params(), toy_clients()[1]
    batch = client.examples.batch(client.train[:7])
    engine = FORWARD.model_copy(update={"tangents": tangents, "micro_batch": rows})
    found = engine(InHalves(), params, batch, BasisDirections(), HEAD)
    body = {n: x for n, x in params.items() if n not in HEAD}
    expected = by_hand(InHalves().logits, params, body, batch)
    torch.testing.assert_close(found.kept[CURVATURE], expected, rtol=1e-9, atol=1e-12)
    emulating = engine.model_copy(update={"emulate": True})
    again = emulating(InHalves(), params, batch, BasisDirections(), HEAD)
    torch.testing.assert_close(again.kept[CURVATURE], expected, rtol=1e-9, atol=1e-12)
    plain = Forward(emulate=False, micro_batch=engine.micro_batch)(
        InHalves(), params, batch, BasisDirections(), HEAD
    )
    assert plain.slopes_K is not None and found.slopes_K is not None
    torch.testing.assert_close(found.slopes_K, plain.slopes_K, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.grad, plain.grad, rtol=1e-12, atol=1e-15)
    assert found.forwards == pytest.approx(engine.passes(75, True) * 7) and not plain.kept


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_of_a_model_and_of_labels() -> None:
    """A model of transformers with TinyLoRA; and labels, whose H is diag p (1 - p) / C."""
    from forefed.models.adapters import TinyLora

    task = tiny_task("bert", TinyLora(r=2, u=3, layers="last:1"))
    batch = tiny_examples(4).batch(range(4))
    params = moved(task.params)
    found = FORWARD(task.loss, params, batch, BasisDirections(), task.head).kept[CURVATURE]
    body = {n: x for n, x in params.items() if n not in task.head}
    expected = by_hand(task.logits, params, body, batch)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected.double(), rtol=1e-3, atol=1e-4 * scale)

    z, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.0]])
    own = _Linear(InTwo(lambda p, b: p["x"] * z, MultiLabel(("a", "b")).losses))
    some = FORWARD(own, {"x": torch.ones(1)}, Batch({}, labels), BasisDirections())
    p = torch.sigmoid(z.double())
    assert float(some.kept[CURVATURE]) == pytest.approx(float((z**2 * p * (1 - p)).sum() / 2))


class _Linear:
    def __init__(self, in_two: InTwo):
        self.in_two = in_two

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.in_two.losses(self.in_two.logits(params, batch), batch).mean()

    def weight(self, batch: Batch) -> int:
        return batch.size


class Bowl:
    """Half of |A w - y|^2 by row, through logits [B, 2]: a quadratic, so G is its Hessian."""

    in_two = InTwo(
        lambda p, b: torch.einsum("bcd,d->bc", b.inputs["a"], torch.cat([p["u"], p["v"]])),
        lambda z, b: (z - b.inputs["y"]).square().sum(1) / 2,
    )

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.in_two.losses(self.in_two.logits(params, batch), batch).mean()

    def weight(self, batch: Batch) -> int:
        return batch.size


START = {"u": torch.ones(2), "v": -torch.ones(3)}


def bowls(*rows: int) -> list[dict[str, Tensor]]:
    keys = [forefed.core.keys.Key(3).fold(i) for i in range(len(rows))]
    return [
        {"a": k.fold("a").normal((n, 2, 5)), "y": k.fold("y").normal((n, 2))}
        for k, n in zip(keys, rows, strict=True)
    ]


def end(clients: list[dict[str, Tensor]], rounds: int = 1, **more: Any) -> Params:
    modifier = {"kind": "gauss_newton", "damping": 1e-9, **more.pop("modifier", {})}
    settings: dict[str, Any] = {
        "strategy": "fedfgd",
        "directions": "basis",
        "engine": {"kind": "forward", "curvature": True},
        "codec": "dense",
        "server": {"kind": "sgd", "lr": 1.0},
        "client": WHOLE,
        "modifiers": [modifier],
        **more,
    }
    return forefed.simulate(Bowl(), START, clients, rounds=rounds, **settings).params


def optimum(clients: list[dict[str, Tensor]]) -> Tensor:
    a, y = (torch.cat([c[n].flatten(0, 1) for c in clients]).double() for n in ("a", "y"))
    return torch.linalg.lstsq(a, y[:, None]).solution[:, 0]


@pytest.mark.parametrize("rows", [(9,), (4, 1, 7)])
def test_a_quadratic_is_solved_in_one_step_whoever_has_the_rows(rows: tuple[int, ...]) -> None:
    clients = bowls(*rows)
    found = trees.flatten(end(clients, modifier={"blocks": "all"})).double()
    torch.testing.assert_close(found, optimum(clients), rtol=1e-4, atol=1e-4)


def test_blocks_by_hand_with_their_damping() -> None:
    clients = bowls(4, 1, 7)
    a, y = (torch.cat([c[n].flatten(0, 1) for c in clients]).double() for n in ("a", "y"))
    w = trees.flatten(START).double()
    h, g = a.T @ a / 12, a.T @ (a @ w - y) / 12
    expected = w.clone()
    for part in (slice(0, 2), slice(2, 5)):
        own = h[part, part]
        own = own + 0.3 * h.diagonal().mean() * torch.eye(len(own), dtype=torch.float64)
        expected[part] -= torch.linalg.solve(own, g[part])
    found = end(clients, modifier={"damping": 0.3})
    torch.testing.assert_close(trees.flatten(found).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_head_keeps_its_step_and_whoever_trains_half_sends_half() -> None:
    """Units split among clients: of what a client does not train it sends zeros that count for
    nothing, so each unit moves as if its one client were alone; a large damping is a plain step of
    another length."""
    clients = bowls(4, 7)
    plain = end(clients, modifiers=[], engine={"kind": "forward"}, head=["v"])
    found = end(clients, head=["v"])
    assert torch.equal(found["v"], plain["v"]) and not torch.equal(found["u"], plain["u"])
    split = {"strategy": "spry", "assign": {"kind": "contiguous", "replicas": 1}}
    some = end(clients, **split)
    alone = [end([c]) for c in clients]
    for first, second in (alone, alone[::-1]):
        if torch.allclose(some["u"], first["u"], rtol=1e-5):
            torch.testing.assert_close(some["v"], second["v"], rtol=1e-5, atol=1e-6)
            break
    else:
        pytest.fail("nobody has trained the unit alone")
    far = end(clients, modifier={"damping": 1e3})
    gone = trees.flatten(trees.subtract(START, far))
    step = trees.flatten(trees.subtract(START, plain))
    assert torch.nn.functional.cosine_similarity(gone[:2], step[:2], 0) > 1 - 1e-5


def test_what_cannot_be_counts_for_nothing() -> None:
    """Somebody's sums that are not finite; what is no sum of squares; a G of zeros."""
    one, nobody = GaussNewton(damping=0.5), {}
    ctx = ServerContext(round=1, key=forefed.core.keys.Key(0))
    bad = Contribution(
        1, 3.0, {"u": torch.ones(2)}, beside={"gauss_newton/u": torch.tensor([1, torch.nan, 1])}
    )
    left, state = one.on_receive(bad, nobody, ctx)
    assert left.weight == 0 and not state
    g = torch.tensor([1.0, 2.0], dtype=torch.float64)
    wrong = torch.diag(torch.tensor([-5.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(solved(wrong, g, 0.25), g / torch.tensor([0.25, 1.25]).double())
    assert torch.equal(solved(torch.zeros(2, 2).double(), g, 0.0), g)
    x = torch.randn(4, 4)
    assert torch.equal(unpacked(packed(x + x.T), 4), x + x.T)


def test_refused_with_a_reason(world: World, tmp_path: Path) -> None:
    def loss(params: Params, batch: Any) -> Tensor:
        return params["u"].square().sum()

    own = {"strategy": "fedfgd", "directions": "basis", "codec": "dense", "client": WHOLE}
    engine = {"kind": "forward", "curvature": True}
    rows = [{"a": torch.ones(2)}]
    with pytest.raises(UserError, match="shows no logits"):
        forefed.simulate(loss, START, rows, engine=engine, modifiers=["gauss_newton"], **own)
    wide = {"u": torch.ones(2000)}
    with pytest.raises(UserError, match="2,000 numbers of u, at most 1,024"):
        forefed.simulate(loss, wide, rows, engine=engine, modifiers=["gauss_newton"], **own)
