"""DADAO: clocks, the flow between events, and where it ends."""

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
from forefed.core.types import Params
from forefed.federation.topology.dadao import X_, Y_, Z_, Constants, Dadao, X, Y, Z, resistance
from forefed.federation.topology.graphs import Full, Ring

D, RIDGE = 3, 0.5


def squared(params: Params, batch: dict[str, Tensor]) -> Tensor:
    return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean() / 2


def nodes(count: int) -> list[dict[str, Tensor]]:
    """Unlike rows, of which every node's second moments are the identity times 1 to 2."""
    key, rows = Key(3), []
    for i in range(count):
        x = math.sqrt(D * (1 + i / count)) * torch.eye(D, dtype=torch.float64)
        rows.append({"x": x, "y": 3 * key.fold(i).normal((D,)).double()})
    return rows


def solved(clients: list[dict[str, Tensor]]) -> Tensor:
    """The head in closed form: ridge regression from the nodes' sums."""
    gram = sum(c["x"].T @ c["x"] / len(c["x"]) for c in clients) / len(clients)
    right = sum(c["x"].T @ c["y"] / len(c["x"]) for c in clients) / len(clients)
    return torch.linalg.solve(gram + RIDGE * torch.eye(D), right)


def dadao(count: int, rounds: int, **more: Any) -> forefed.Simulation:
    topology = {"graph": "ring", "smoothness": 2.0, "convexity": 1.0, "ridge": RIDGE, **more}
    start = {"w": torch.zeros(D, dtype=torch.float64)}
    called = {"strategy": "dadao", "rounds": rounds, "topology": topology, "seed": 4}
    return forefed.simulate(squared, start, nodes(count), **called)


def test_the_flow_between_events_by_hand() -> None:
    some = Constants(convexity=2.0, smoothness=4.0, chi1=1.0)  # nu = 1, sqrt(nu / L) = 1/2
    six = torch.zeros(6, 1, dtype=torch.float64)
    six[X], six[X_] = 3.0, 1.0
    after = some.flow(1.5) @ six
    apart = 2 * math.exp(-2 * 1.5 / 16)  # zeta = 1/16
    assert float(after[X]) == pytest.approx(2 + apart / 2, rel=1e-12)
    assert float(after[X_]) == pytest.approx(2 - apart / 2, rel=1e-12)
    torch.testing.assert_close(some.flow(0.7) @ some.flow(0.8), some.flow(1.5))
    torch.testing.assert_close(some.flow(0.0), torch.eye(6, dtype=torch.float64))
    slow = some.flow(1e-6) - torch.eye(6, dtype=torch.float64)  # theta = 1: dY' = -(X' + Y + Z)
    torch.testing.assert_close(
        slow[Y_] / 1e-6,
        torch.tensor([0.0, -1, -1, 0, -1, 0], dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )
    pulls = {Y: (Y_, 1 / 8), Z: (Z_, 1 / 8), Z_: (Z, 1 / 16)}  # alpha, alpha, zeta
    for row, (towards, rate) in pulls.items():
        wanted = torch.zeros(6, dtype=torch.float64)
        wanted[row], wanted[towards] = -rate, rate
        torch.testing.assert_close(slow[row] / 1e-6, wanted, atol=1e-5, rtol=0)


def test_events_by_hand() -> None:
    some = Constants(convexity=2.0, smoothness=4.0, chi1=3.0)
    six = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None]  # X 1, X' 2, Y 3, Y' 4, Z 5, Z' 6
    r = 10.0 - 1.0 * 1 - 4
    moved = some.moved(six, torch.tensor([10.0], dtype=torch.float64))
    wanted = [1 - r / 16, 2 - r / 8, 3, 4 + (1 / 8 + 1) * r, 5, 6]
    torch.testing.assert_close(moved[:, 0], torch.tensor(wanted, dtype=torch.float64))
    one, other = some.exchanged(six, torch.zeros_like(six))
    e = (3 + 5) / 2
    assert (one - six)[:, 0].tolist() == [0, 0, 0, 0, -e / 2, -12 * e]  # beta' = 2 chi1 sqrt(L/nu)
    assert other[:, 0].tolist() == [0, 0, 0, 0, e / 2, 12 * e]


def test_constants_of_graphs() -> None:
    chi1, chi2 = resistance(8, Ring().edges(8, Key(0)))
    assert chi1 == pytest.approx(1 / (2 - math.sqrt(2))) and chi2 == pytest.approx(7 / 16)
    chi1, chi2 = resistance(5, Full().edges(5, Key(0)))
    assert chi1 == pytest.approx(1 / 5) and chi2 == pytest.approx(1 / 5)
    each, found = Dadao(safety=3.0, smoothness=2.0, convexity=1.0).rates(8, Ring().edges(8, Key(0)))
    assert each == pytest.approx(3 * math.sqrt(2 * 7 / 16 / (2 - math.sqrt(2))))
    assert found.chi1 * each == pytest.approx(1 / (2 - math.sqrt(2)))
    assert found.convexity == pytest.approx(1.01) and found.smoothness == pytest.approx(2.01)


def test_alone_it_ends_at_the_closed_form() -> None:
    result = dadao(1, 1, time=300.0)
    (report,) = result.reports
    assert 240 < report.metrics["gradients"] < 360 and not report.bytes_up
    error = (result.params["w"] - solved(nodes(1))).norm()
    assert float(error) < 1e-9


def test_nodes_end_at_the_closed_form_of_all_rows() -> None:
    clients = nodes(4)
    whole = dadao(4, 2, time=60.0)
    error = (whole.params["w"] - solved(clients)).norm() / solved(clients).norm()
    assert float(error) < 1e-3
    assert whole.reports[-1].metrics["disagreement"] < 1e-2
    z = torch.stack([x[Z] for x in whole.state.of("six").values()])
    assert float(z.sum(0).abs().max()) < 1e-12 < float(z.abs().max())
    for i in range(4):
        torch.testing.assert_close(whole.own(i)["w"], whole.params["w"], atol=2e-2, rtol=0)
    assert sum(r.bytes_up for r in whole.reports) == 16 * D * sum(
        r.metrics["messages"] / 2 for r in whole.reports
    )


def test_it_goes_on_as_if_never_stopped() -> None:
    start = {"w": torch.zeros(D)}
    clients = [{n: x.float() for n, x in c.items()} for c in nodes(3)]
    called = {"strategy": "dadao", "topology": {"graph": "full", "smoothness": 2.0}}
    whole = forefed.simulate(squared, start, clients, rounds=4, **called)
    half = forefed.simulate(squared, start, clients, rounds=2, **called)
    rest = forefed.simulate(squared, start, clients, rounds=2, state=half.state, **called)
    assert trees.digest(rest.state.flat()) == trees.digest(whole.state.flat())
    assert trees.digest(whole.params) != trees.digest(start)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client": {"epochs": 2}}, "needed: client = "),
        ({"modifiers": ["scaffold"]}, "no modifiers"),
        ({"topology": {"ridge": 0.0}}, "no more than convex needs one"),
        ({"strategy": "fedavg", "topology": "dadao"}, "adapter.kind = 'head'"),
        ({"topology": {"graph": {"kind": "given", "edge": [[0, 1]]}}}, "hear nothing of the"),
    ],
)
def test_mistakes_are_one_sentence(change: dict[str, Any], words: str) -> None:
    called = {"strategy": "dadao", **change}
    with pytest.raises(UserError, match=words):
        forefed.simulate(squared, {"w": torch.zeros(D)}, nodes(3), **called)
