"""A ring without a server: by hand, what mixing keeps, and what it reduces to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import forefed
from forefed.core.states import of_flat
from forefed.core.types import Params
from forefed.federation.topology.ring import neighbours
from forefed.optimisers import Sgd

STEP = {"batch_size": "all", "optimiser": Sgd(lr=0.5)}
TARGETS = (0.0, 3.0, 6.0, 27.0)


def towards(params: Params, batch: dict[str, Tensor]) -> Tensor:
    return ((params["w"] - batch["y"]) ** 2).mean() / 2


def ring(rounds: int, targets: tuple[float, ...] = TARGETS, **more: object) -> forefed.Simulation:
    clients = [{"y": torch.tensor([t])} for t in targets]
    start = {"w": torch.zeros(())}
    return forefed.simulate(
        towards, start, clients, rounds=rounds, client=STEP, topology="ring", **more
    )


def test_a_round_by_hand() -> None:
    """Half a step towards 0, 3, 6, 27, then the mean of three neighbours on the ring."""
    found = ring(1)
    own = [0.0, 1.5, 3.0, 13.5]
    for c in range(4):
        near = [own[(c - 1) % 4], own[c], own[(c + 1) % 4]]
        assert float(found.state.of(f"node.{c}")["w"]) == pytest.approx(sum(near) / 3)
    assert float(found.params["w"]) == pytest.approx(sum(own) / 4)  # mixing keeps the mean
    assert found.reports[0].metrics["disagreement"] > 0
    assert found.reports[0].bytes_up == found.reports[0].bytes_down > 0


def test_three_nodes_see_each_other_so_a_ring_of_three_is_fedavg() -> None:
    same = {"rounds": 4, "client": STEP, "strategy": "fedavg"}
    clients = [{"y": torch.tensor([t])} for t in TARGETS[:3]]
    star = forefed.simulate(towards, {"w": torch.zeros(())}, clients, **same)
    assert float(ring(4, TARGETS[:3]).params["w"]) == pytest.approx(float(star.params["w"]))


def test_a_ring_goes_on_from_its_state() -> None:
    whole, first = ring(4), ring(2)
    again = type(first.state).of_flat(2, first.state.flat())
    assert of_flat(again.flat()).keys() == {"params", *(f"node.{c}" for c in range(4))}
    assert torch.equal(ring(2, state=again).params["w"], whole.params["w"])


@pytest.mark.parametrize(("count", "beside"), [(1, []), (2, [1]), (3, [1, 2]), (5, [1, 4])])
def test_neighbours(count: int, beside: list[int]) -> None:
    assert neighbours(0, count) == beside
