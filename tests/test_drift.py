"""Drift that is removed, and rounds that wait for nobody: numbers by hand, and reductions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import forefed
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Params
from forefed.federation.topology.buffered import Buffered
from forefed.gradients.backprop import Backprop
from forefed.gradients.sam import Sam
from forefed.run.simulate import Rows, Simulation

CURVES, CENTRES = (1.0, 2.0, 5.0, 0.5), (0.0, 1.0, -2.0, 4.0)
OPTIMUM = sum(a * b for a, b in zip(CURVES, CENTRES, strict=True)) / sum(CURVES)


def loss(params: Params, batch: Rows) -> Tensor:
    """a (w - b)^2 / 2: one client each, whose common optimum is -0.705882."""
    return (batch["a"] * (params["w"] - batch["b"]) ** 2 / 2).mean()


def clients() -> list[Rows]:
    one = [torch.tensor([x], dtype=torch.float64) for x in (*CURVES, *CENTRES)]
    return [{"a": one[i], "b": one[4 + i]} for i in range(4)]


def drifting(strategy: str, rounds: int, **more: Any) -> Simulation:
    client = {"epochs": 20, "optimiser": {"kind": "sgd", "lr": 0.05, "head_lr": None}}
    start = {"w": torch.zeros((), dtype=torch.float64)}
    return forefed.simulate(
        loss, start, clients(), strategy=strategy, rounds=rounds, client=client, **more
    )


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_feddyn_ends_at_the_optimum_where_fedavg_and_fedprox_do_not(alpha: float) -> None:
    dyn = [{"kind": "feddyn", "alpha": alpha}]
    found = drifting("feddyn", 60, modifiers=dyn)
    assert float(found.params["w"]) == pytest.approx(OPTIMUM, abs=2e-3)
    assert pytest.approx(-0.705882, abs=1e-6) == OPTIMUM
    prox = [{"kind": "proximal", "mu": 0.1}]
    for strategy, end, more in (("fedavg", 0.1627, {}), ("fedprox", 0.1467, {"modifiers": prox})):
        drifted = drifting(strategy, 25, **more)
        assert float(drifted.params["w"]) == pytest.approx(end, abs=2e-3)
    # the server's h is the mean of the clients' own, and those are -gradient / alpha at the end
    states = found.star.transport.store.states
    own = [float(states[c]["modifier.feddyn/w"]) for c in range(4)]
    assert float(found.state.of("modifier.feddyn")["w"]) == pytest.approx(sum(own) / 4, abs=1e-9)
    for c, h in enumerate(own):
        assert h == pytest.approx(-CURVES[c] * (OPTIMUM - CENTRES[c]) / alpha, rel=0.02, abs=0.02)


def test_feddyn_begins_as_fedprox() -> None:
    """In round 1 nothing has added up, but the server adds the mean move once more: h = mean."""
    dyn = drifting("feddyn", 1, modifiers=[{"kind": "feddyn", "alpha": 0.3}])
    prox = drifting("fedprox", 1, modifiers=[{"kind": "proximal", "mu": 0.3}])
    assert float(dyn.params["w"]) == pytest.approx(2 * float(prox.params["w"]))


def test_fedspeed_without_a_radius_is_feddyn() -> None:
    dyn = drifting("feddyn", 2)
    speed = drifting("fedspeed", 2, engine={"kind": "sam", "rho": 0.0})
    assert torch.equal(dyn.params["w"], speed.params["w"])


def test_sam_by_hand() -> None:
    """w^2 / 2 at 3: gradient 3, uphill by 0.1 it is 3.1; the loss is that of where it stands."""

    class Square:
        def __call__(self, params: Params, batch: Batch) -> Tensor:
            return params["w"] ** 2 / 2

        def weight(self, batch: Batch) -> int:
            return 1

    batch = Batch({}, torch.zeros(1))
    here = {"w": torch.tensor(3.0)}
    found = Sam(rho=0.1)(Square(), here, batch)
    plain = Backprop()(Square(), here, batch)
    assert float(found.grad["w"]) == pytest.approx(3.1) and found.loss == plain.loss == 4.5
    assert found.forwards == 2 * plain.forwards
    flat = Sam()(Square(), {"w": torch.tensor(0.0)}, batch)
    assert float(flat.grad["w"]) == 0.0


def test_waiting_for_everybody_is_fedavg() -> None:
    plain = drifting("fedavg", 3)
    waiting = drifting("fedbuff", 3, topology={"kind": "buffered", "buffer": 4})
    assert torch.equal(plain.params["w"], waiting.params["w"])
    assert [r.metrics["age"] for r in waiting.reports] == [0.0, 0.0, 0.0]


def test_an_old_answer_counts_less_and_the_clock_is_the_arrival() -> None:
    """Client 3 takes 10 times as long. The server moves with each answer of the three others, then
    with its old one: weight (1 + age)^-1/2."""
    rule = Buffered(buffer=1, slow=0.25, spread=0.0)
    run = Key(0)
    slow = [c for c in range(4) if rule.takes(run, c, 1, 4) == 10.0]
    assert len(slow) == 1 and sum(rule.takes(run, c, 1, 4) for c in range(4)) == 13.0
    settings = {"kind": "buffered", "buffer": 1, "slow": 0.25, "spread": 0.0}
    found = drifting("fedbuff", 31, topology=settings)
    clocks = [r.metrics["clock"] for r in found.reports]
    assert clocks[:7] == [1, 1, 1, 2, 2, 2, 3] and clocks == sorted(clocks)
    late = next(r for r in found.reports if r.heard == (slow[0],))
    assert late.metrics["clock"] == 10.0 and late.round >= 28
    assert late.metrics["age"] == late.round - 1
    # its update is that of FedAvg's first round for this client, times 28^-1/2 or so
    first = drifting("fedavg", 1).reports[0].updates[slow[0]]
    expected = float(first.grad["w"]) * (1 + late.metrics["age"]) ** -0.5
    assert float(late.updates[0].grad["w"]) == pytest.approx(expected)


def test_what_is_on_its_way_survives_a_stop() -> None:
    settings = {"kind": "buffered", "buffer": 2, "slow": 0.5}
    whole = drifting("fedbuff", 6, topology=settings)
    half = drifting("fedbuff", 3, topology=settings)
    again = type(half.state).of_flat(3, half.state.flat())
    after = drifting("fedbuff", 3, topology=settings, state=again)
    assert trees.digest(after.params) == trees.digest(whole.params)
    assert after.reports[-1].metrics["clock"] == whole.reports[-1].metrics["clock"]
