"""Gossip without a server: graphs, by hand, what mixing keeps, what it reduces to, lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import forefed
from federation import World, lines
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.states import of_flat
from forefed.core.types import Params
from forefed.federation.topology.graphs import (
    GRAPHS,
    Given,
    Graph,
    connected,
    metropolis,
    neighbours,
)
from forefed.gradients.sam import Sam
from forefed.optimisers import Sgd

STEP = {"batch_size": "all", "optimiser": Sgd(lr=0.5)}
TARGETS = (0.0, 3.0, 6.0, 27.0)


def towards(params: Params, batch: dict[str, Tensor]) -> Tensor:
    return ((params["w"] - batch["y"]) ** 2).mean() / 2


def gossip(
    rounds: int, targets: tuple[float, ...] = TARGETS, graph: object = "ring", **more: object
) -> forefed.Simulation:
    clients = [{"y": torch.tensor([t])} for t in targets]
    settings = {"client": STEP, **more}
    topology = {"kind": "gossip", "graph": graph, **settings.pop("topology", {})}
    start = {"w": torch.zeros(())}
    return forefed.simulate(towards, start, clients, rounds=rounds, topology=topology, **settings)


def matrix(graph: Graph, n: int) -> np.ndarray:
    weights = metropolis(neighbours(n, graph.edges(n, Key(1))))
    w_NN = np.array([[row.get(j, 0.0) for j in range(n)] for row in weights])
    return w_NN + np.diag(1 - w_NN.sum(1))


def made(kind: str) -> Graph:
    return GRAPHS[kind](**({"edge": ((0, 1), (1, 2), (2, 3))} if kind == "given" else {}))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([k for k in GRAPHS.kinds() if k != "given"]), st.integers(1, 24))
def test_weights_are_symmetric_and_doubly_stochastic_on_every_graph(kind: str, n: int) -> None:
    graph = made(kind)
    if kind == "random_regular" and n <= 4:
        with pytest.raises(UserError, match="degree"):
            graph.edges(n, Key(1))
        return
    edges = graph.edges(n, Key(1))
    assert edges == sorted({(i, j) for i, j in edges if i < j}) and connected(n, edges)
    w_NN = matrix(graph, n)
    assert (w_NN == w_NN.T).all() and (w_NN >= 0).all()
    np.testing.assert_allclose(w_NN.sum(1), 1)
    assert n == 1 or (w_NN.diagonal() > 0).all()
    if kind == "random_regular":
        assert {len(b) for b in neighbours(n, edges)} == {4}


def test_spectral_gaps_of_known_graphs() -> None:
    """Ring of 8: 1/3 + 2/3 cos(pi/4); the exponential graph of 16, circulant with 7 neighbours at
    distances 1, 2, 4, 8 (8 is its own opposite): the largest of the closed form's eigenvalues."""
    size = np.sort(abs(np.linalg.eigvalsh(matrix(made("ring"), 8))))
    assert size[-2] == pytest.approx(0.8047, abs=1e-4)
    assert size[-2] ** 4 == pytest.approx(0.4194, abs=1e-4)
    k = np.arange(1, 16)
    angles = [2 * np.pi * k * hop / 16 for hop in (1, 2, 4, 8)]
    closed = (1 + 2 * sum(np.cos(a) for a in angles[:3]) + np.cos(angles[3])) / 8
    size = np.sort(abs(np.linalg.eigvalsh(matrix(made("exponential"), 16))))
    assert size[-2] == pytest.approx(abs(closed).max())
    assert np.linalg.eigvalsh(matrix(made("full"), 5))[-2] == pytest.approx(0)


def test_metropolis_by_hand() -> None:
    """A star of four: its middle has three neighbours, the others one."""
    w_NN = matrix(Given(edge=((0, 1), (0, 2), (0, 3))), 4)
    np.testing.assert_allclose(w_NN[0], [1 / 4] * 4)
    np.testing.assert_allclose(w_NN[1], [1 / 4, 3 / 4, 0, 0])
    assert neighbours(6, made("grid").edges(6, Key(0))) == [
        [1, 3], [0, 2, 4], [1, 5], [0, 4], [1, 3, 5], [2, 4]
    ]  # fmt: skip


def test_a_round_by_hand() -> None:
    """Half a step towards 0, 3, 6, 27, then the mean of three neighbours on the ring."""
    found = gossip(1)
    own = [0.0, 1.5, 3.0, 13.5]
    for c in range(4):
        near = [own[(c - 1) % 4], own[c], own[(c + 1) % 4]]
        assert float(found.own(c)["w"]) == pytest.approx(sum(near) / 3)
    assert float(found.params["w"]) == pytest.approx(sum(own) / 4)  # mixing keeps the mean
    assert found.reports[0].metrics["disagreement"] > 0
    assert found.reports[0].bytes_up == found.reports[0].bytes_down > 0


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_a_full_graph_is_fedavg_with_all_members(strategy: str) -> None:
    more = {"strategy": strategy, "client": {**STEP, "epochs": 3}}
    clients = [{"y": torch.tensor([t])} for t in TARGETS]
    star = forefed.simulate(towards, {"w": torch.zeros(())}, clients, rounds=4, **more)
    found = gossip(4, graph="full", **more)
    torch.testing.assert_close(found.params["w"], star.params["w"], rtol=1e-6, atol=0)
    assert found.losses == pytest.approx(star.losses)


def test_without_a_gossip_step_every_node_is_alone_and_more_steps_bring_them_together() -> None:
    alone = gossip(3, topology={"steps": 0})
    one = forefed.simulate(
        towards, {"w": torch.zeros(())}, [{"y": torch.tensor([27.0])}], rounds=3, client=STEP
    )
    assert torch.equal(alone.own(3)["w"], one.params["w"])
    apart = [gossip(1, topology={"steps": q}).reports[0].metrics["disagreement"] for q in (0, 1, 4)]
    assert apart[1] <= apart[0] / 3 + 1e-6 and apart[2] <= apart[0] / 81 + 1e-6  # |lambda2| = 1/3


def test_gossip_goes_on_from_its_state() -> None:
    more = {"codec": {"kind": "quantised", "bits": 4}, "topology": {"gamma": 0.5, "steps": 2}}
    whole, first = gossip(4, **more), gossip(2, **more)
    again = type(first.state).of_flat(2, first.state.flat())
    owners = {f"{what}.{c}" for what in ("node", "copy") for c in range(4)}
    assert of_flat(again.flat()).keys() == {"params", *owners}
    more_rounds = gossip(2, state=again, **more)
    assert all(torch.equal(more_rounds.own(c)["w"], whole.own(c)["w"]) for c in range(4))


@pytest.mark.parametrize(
    ("codec", "gamma"),
    [({"kind": "quantised", "bits": 4}, 0.5), ({"kind": "sparse", "ratio": 0.25}, 0.2)],
)
def test_codecs_that_lose_keep_the_mean_and_agree_in_the_end(codec: object, gamma: float) -> None:
    """CHOCO: once nobody trains any more, models meet at the mean, whatever messages lose."""
    n, rest = 4, {"kind": "local", "batch_size": "all", "optimiser": Sgd(lr=0.0)}
    x_N8 = Key(3).normal((n, 8))
    clients = [{"y": x} for x in x_N8[:, None]]
    base = {"topology": {"kind": "gossip", "graph": "exponential", "gamma": gamma}, "codec": codec}
    first = forefed.simulate(towards, {"w": torch.zeros(8)}, clients, rounds=1, client=STEP, **base)
    mean = first.params["w"]
    done = forefed.simulate(
        towards, {"w": torch.zeros(8)}, clients, rounds=30, client=rest, state=first.state, **base
    )
    torch.testing.assert_close(done.params["w"], mean, rtol=1e-5, atol=1e-6)
    apart = [r.metrics["disagreement"] for r in (*first.reports, done.reports[-1])]
    assert apart[1] < 0.1 * apart[0]


def test_a_node_that_is_lost_rests_and_the_mean_is_kept() -> None:
    """Silent nodes keep their models; their weight goes to their neighbours' own."""
    found = gossip(3, faults={"offline": 0.5}, seed=4)
    lost = {lost.client for lost in found.reports[0].lost}
    assert 0 < len(lost) < 4
    first = gossip(1, faults={"offline": 0.5}, seed=4)
    assert all(float(first.own(c)["w"]) == 0.0 for c in lost)
    own = [0.0 if c in lost else t / 2 for c, t in enumerate(TARGETS)]
    assert float(first.params["w"]) == pytest.approx(sum(own) / 4)


NNA = {"kind": "nna", "pivot": "own", "f": 2}


def test_lies_are_left_out_by_the_nodes_nearest_to_oneself() -> None:
    """Nine honest nodes at one point and two liars far away: exactly the honest point; a mean is
    led astray."""
    more = {"graph": "full", "attack": {"kind": "ipm", "epsilon": 1e6, "hostile": 2}}
    targets = (6.0,) * 11
    robust = gossip(1, targets, aggregator=NNA, **more)
    assert float(robust.params["w"]) == pytest.approx(3.0)
    assert abs(float(gossip(1, targets, **more).params["w"])) > 1e3
    honest = [c for c in range(11) if c not in robust.star.transport.who]
    assert {float(robust.own(c)["w"]) for c in honest} == {3.0}


def test_silent_neighbours_count_as_hostile() -> None:
    """Who hears nobody keeps its model; of three present and two silent ones none is left out."""
    alone = gossip(1, faults={"offline": 1.0}, aggregator=NNA, graph="full", targets=(6.0,) * 5)
    assert float(alone.params["w"]) == 0.0
    targets = (0.0, 1.0, 2.0, 8.0, 9.0)
    found = next(
        x
        for seed in range(100)
        if len(
            (x := gossip(1, targets, "full", faults={"offline": 0.4}, aggregator=NNA, seed=seed))
            .reports[0]
            .lost
        )
        == 2
    )
    lost = {x.client for x in found.reports[0].lost}
    there = [c for c in range(5) if c not in lost]
    for c in there:
        assert float(found.own(c)["w"]) == pytest.approx(sum(targets[i] / 2 for i in there) / 3)


def test_monna_on_quadratics() -> None:
    """6 honest nodes, one that sends -5 times their mean change, and momentum 0.9: the honest ones
    come near their common optimum and agree to less than their data differ."""
    c_N = Key(5).normal((7,))
    found = gossip(
        30,
        tuple((10 + c_N).tolist()),
        "full",
        modifiers=[{"kind": "momentum", "beta": 0.9}],
        client={"batch_size": "all", "optimiser": Sgd(lr=0.2)},
        attack={"kind": "ipm", "epsilon": 5.0, "hostile": 1},
        aggregator={**NNA, "f": 1},
    )
    honest = [c for c in range(7) if c not in found.star.transport.who]
    best = float(10 + c_N[honest].mean())
    assert abs(float(found.params["w"]) - best) < 0.1 * best
    assert found.reports[-1].metrics["disagreement"] < 0.3 * float(c_N[honest].std())


def test_every_node_is_tested_and_the_record_has_the_spread(world: World, tmp_path: Path) -> None:
    sets = [
        "strategy=fedavg",
        "topology=gossip",
        "cohort=6",
        "rounds=1",
        "client.optimiser.lr=0.05",
    ]
    run = world.run(tmp_path, *sets)
    first, *nodes = (e for e in lines(run.folder, "evaluations.jsonl") if e["round"] == 1)
    assert first["split"] == "test" and len(nodes) == 1 and nodes[0]["split"] == "nodes"
    each = nodes[0]["each"]
    assert list(each) == [str(c) for c in range(6)] and nodes[0]["clients"] == 6
    assert nodes[0]["accuracy"] == pytest.approx(sum(each.values()) / 6)
    assert nodes[0]["client_worst"] == min(each.values())
    (round,) = lines(run.folder, "rounds.jsonl")
    assert round["metrics"]["disagreement"] > 0 and round["metrics"]["resting"] == 0


def test_graphs_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="add edges"):
        gossip(1, graph={"kind": "given", "edge": [[0, 1], [2, 3]]})
    with pytest.raises(UserError, match=r"\[3, 4\] is no pair"):
        gossip(1, graph={"kind": "given", "edge": [[0, 1], [1, 2], [2, 3], [3, 4]]})


def test_sam_by_hand_and_without_a_radius() -> None:
    """L = w^2 / 2 at (3, 4): 0.5 further out the gradient is (3.3, 4.4)."""

    def bowl(params: Params, batch: dict[str, Tensor]) -> Tensor:
        return (params["w"] ** 2).sum() / 2 + 0 * batch["y"].sum()

    def moved(engine: object) -> Tensor:
        start, clients = {"w": torch.tensor([3.0, 4.0])}, [{"y": torch.zeros(1)}]
        step = {"batch_size": "all", "optimiser": Sgd(lr=1.0)}
        found = forefed.simulate(bowl, start, clients, rounds=1, client=step, engine=engine)
        return start["w"] - found.params["w"]

    torch.testing.assert_close(moved(Sam(rho=0.5)), torch.tensor([3.3, 4.4]))
    assert torch.equal(moved(Sam(rho=0.0)), moved("backprop"))
