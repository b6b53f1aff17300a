"""Two paths and a gate: what each part of a round moves, what travels, and when it pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from forefed.core.keys import Key
from forefed.core.routes import ALONE, COMMON, GATE_IN, GATE_OUT, HARD, OWN, ROUTE, SOFT, beside
from forefed.core.types import Params
from forefed.local import flow
from forefed.local.flow import pulled
from forefed.local.phases import Phase, in_phases
from forefed.local.training import Walked
from forefed.run.simulate import Rows, Simulation

D = 10
A, B = "m.lora_A.w", "m.lora_B.w"
PARTS = (OWN, GATE_IN, GATE_OUT, ROUTE)


def first() -> Params:
    """A of ones on the diagonal, so that B [2, D] is a linear rule; the gate sees a flag, too."""
    return {
        A: torch.eye(D, D + 1),
        B: torch.zeros(2, D),
        f"m.{OWN}": torch.zeros(2, D),
        f"m.{GATE_IN}": Key(0).fold("gate").normal((8, D + 1)) / D**0.5,
        f"m.{GATE_OUT}": torch.zeros(9),
        f"m.{ROUTE}": torch.zeros(3),
    }


def logits(params: Params, x: Tensor) -> Tensor:
    low = x @ params[A].T
    parts = {part: params[f"m.{part}"] for part in PARTS}
    return low @ params[B].T + beside(x, low, params[B], parts)


def loss(params: Params, batch: Rows) -> Tensor:
    return torch.nn.functional.cross_entropy(logits(params, batch["x"]), batch["y"])


def rows(client: int, n: int, part: str) -> dict[str, Tensor]:
    """Half of the rows follow a rule that all clients have, the flagged ones the client's own."""
    key = Key(5).fold("rows", client, part)
    x = torch.cat([key.fold("x").normal((n, D)), torch.zeros(n, 1)], 1)
    x[::2, D] = 3.0
    rules = [Key(5).fold("rule", c).normal((D,)) for c in (-1, client)]
    y = torch.where(x[:, D] > 0, x[:, :D] @ rules[1] > 0, x[:, :D] @ rules[0] > 0)
    return {"x": x, "y": y.long()}


def run(clients: int = 4, rounds: int = 1, **more: Any) -> Simulation:
    return forefed.simulate(
        loss,
        first(),
        [rows(c, 60, "train") for c in range(clients)],
        strategy="flow",
        units=[(A, B, *(f"m.{part}" for part in PARTS))],
        rounds=rounds,
        client={
            "batch_size": 10,
            "epochs": 3,
            "optimiser": {"kind": "adamw", "lr": 0.05, "head_lr": 0.05},
            "pull": more.pop("pull", 0.001),
        },
        **more,
    )


def accuracy(params: Params, of: Rows) -> float:
    return float((logits(params, of["x"]).argmax(1) == of["y"]).double().mean())


def at(route: tuple[float, ...], **parts: Tensor) -> Params:
    drawn = {n: Key(3).fold(n).normal(x.shape) for n, x in first().items()}
    return {**drawn, f"m.{ROUTE}": torch.tensor(route), **parts}


@pytest.mark.parametrize(("route", "which"), [(COMMON, B), (ALONE, f"m.{OWN}")])
def test_a_shut_or_open_gate_is_one_of_the_paths(route: tuple[float, ...], which: str) -> None:
    params, of = at(route), rows(0, 12, "train")
    there = {n: x.clone().requires_grad_() for n, x in params.items()}
    plain = of["x"] @ params[A].T @ there[which].T
    torch.testing.assert_close(logits(there, of["x"]), plain)
    (expected,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(plain, of["y"]), [there[which]]
    )
    names = [B, f"m.{OWN}", f"m.{GATE_OUT}"]
    found = torch.autograd.grad(loss(there, of), [there[n] for n in names])
    for name, grad in zip(names, found, strict=True):
        wanted = expected if name == which else torch.zeros_like(grad)
        torch.testing.assert_close(grad, wanted, atol=1e-7, rtol=1e-5)


def test_hard_and_soft_gates_agree_where_the_gate_is_sure() -> None:
    sure = torch.zeros(9)
    sure[-1] = 100.0
    of = rows(0, 12, "train")
    for z in (sure, -sure):
        soft, hard = (logits(at(route, **{f"m.{GATE_OUT}": z}), of["x"]) for route in (SOFT, HARD))
        assert torch.equal(soft, hard)


def test_the_pull_is_to_the_own_path_for_every_gate() -> None:
    z = torch.linspace(-6, 6, 41, dtype=torch.float64, requires_grad=True)
    (by_autograd,) = torch.autograd.grad(-(torch.sigmoid(z) ** 2 + 1e-6).log().sum(), [z])
    torch.testing.assert_close(pulled(z), by_autograd)
    assert bool((pulled(z) < 0).all())


def test_a_round_moves_each_part_in_its_own_phase_and_sends_no_own_path() -> None:
    """The common path is that of FedAvg on the second half alone, whatever the gates do."""
    found, harder = run(), run(pull=50.0)
    for update in found.reports[0].updates:
        assert set(update.grad or {}) == {B, f"m.{GATE_IN}", f"m.{GATE_OUT}"}
        assert update.metrics["steps"] == 3 * 3 * 3 and update.n_examples == 60
    assert torch.equal(found.params[A], first()[A])
    for name in (f"m.{OWN}", f"m.{ROUTE}"):
        assert torch.equal(found.params[name], first()[name])
    # a gate that is trained otherwise changes the gate alone
    assert torch.equal(found.params[B], harder.params[B])
    assert torch.equal(found.own(0)[f"m.{OWN}"], harder.own(0)[f"m.{OWN}"])
    gates = [x.params[f"m.{GATE_OUT}"] for x in (found, harder)]
    assert float(gates[1][-1]) > float(gates[0][-1])
    own = found.own(1)
    assert own[f"m.{ROUTE}"].tolist() == list(HARD)
    assert not torch.equal(own[f"m.{GATE_OUT}"], found.params[f"m.{GATE_OUT}"])


def test_the_gates_are_trained_on_rows_that_the_own_path_has_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Phase, ...]] = []

    def watched(*given: Any) -> Walked:
        seen.append(given[-1])
        return in_phases(*given)

    monkeypatch.setattr(flow, "in_phases", watched)
    run(clients=1)
    (parts,) = seen
    own, gate, common = ({*part.rows.tolist()} for part in parts)
    assert not own & gate and gate == common and own | gate == {*range(60)}


def test_clients_are_stateless_and_a_run_goes_on_bit_for_bit() -> None:
    """The own path of round 2 begins at the common one, whatever was kept."""
    whole, half = run(rounds=2), run(rounds=1)
    again = type(half.state).of_flat(1, half.state.flat())
    after = run(rounds=1, state=again)
    for name, x in whole.params.items():
        assert torch.equal(x, after.params[name])
    assert torch.equal(whole.own(2)[f"m.{OWN}"], after.own(2)[f"m.{OWN}"])


def test_a_client_with_one_row_is_left_with_the_common_path() -> None:
    one = {n: x[:1] for n, x in rows(0, 60, "train").items()}
    found = forefed.simulate(
        loss,
        first(),
        [one, rows(1, 60, "train")],
        strategy="flow",
        units=[(A, B, *(f"m.{part}" for part in PARTS))],
        rounds=1,
    )
    assert found.own(0)[f"m.{ROUTE}"].tolist() == list(COMMON)
    tests = rows(0, 50, "test")
    assert torch.equal(logits(found.own(0), tests["x"]), logits(found.params, tests["x"]))


def test_a_gate_between_two_rules_beats_both() -> None:
    """Flagged rows follow the own rule: either rule alone is right on 0.81 of all, the gate on
    0.94."""
    rules = [Key(5).fold("rule", c).normal((D,)) for c in (-1, 0)]
    paths = [torch.stack([-r, r]) for r in rules]
    params = {**first(), B: paths[0], f"m.{OWN}": paths[1], f"m.{ROUTE}": torch.tensor(SOFT)}
    train, test = rows(0, 200, "train"), rows(0, 400, "test")
    gates = {n: params[n].clone().requires_grad_() for n in (f"m.{GATE_IN}", f"m.{GATE_OUT}")}
    optimiser = torch.optim.Adam(gates.values(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        loss({**params, **gates}, train).backward()
        optimiser.step()
    hard = {**params, **gates, f"m.{ROUTE}": torch.tensor(HARD)}
    alone = [accuracy({**params, f"m.{ROUTE}": torch.tensor(r)}, test) for r in (COMMON, ALONE)]
    assert accuracy(hard, test) > max(alone) + 0.05
