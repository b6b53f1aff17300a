"""Sums that travel up a tree: exact whatever the tree, refused where a sum is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forefed
from federation import World, lines
from forefed.channel import PartialSums
from forefed.channel.channel import Group, Sum, Upload, Work
from forefed.channel.fixed_point import Words
from forefed.channel.messages import decode_sum, encode_sum
from forefed.channel.partial_sums import Adding, Totals
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Secret
from forefed.core.types import Params, Update
from forefed.run import run
from forefed.run.simulate import Simulation

SHAPES = {"b": (2,), "w": (3,)}
CLIENTS = tuple(range(12))


def loss(params: Params, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean()


def shares() -> list[dict[str, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(3)
    return [
        {
            "x": torch.randn(3 + i % 4, 6, generator=drawn),
            "y": torch.randn(3 + i % 4, generator=drawn),
        }
        for i in CLIENTS
    ]


def play(channel: Any, **settings: Any) -> Simulation:
    first = {"w": torch.zeros(6), "b": torch.zeros(())}
    return forefed.simulate(loss, first, shares(), rounds=3, channel=channel, **settings)


def tree(aggregators: int) -> dict[str, Any]:
    return {"kind": "partial_sums", "aggregators": aggregators}


@pytest.mark.parametrize("aggregators", [1, 3, 5, 12])
def test_twelve_clients_below_any_number_of_aggregators_give_the_flat_runs_bits(
    aggregators: int,
) -> None:
    flat, deep = play(tree(0)), play(tree(aggregators))
    for name, x in flat.params.items():
        assert x.equal(deep.params[name])
    for one, other in zip(flat.reports, deep.reports, strict=True):
        assert other.heard == one.heard == CLIENTS
        # one vector for each aggregator, and the order's parameters once to each of them
        assert other.bytes_up < one.bytes_up or aggregators == 12
        assert other.bytes_down < one.bytes_down or aggregators == 12
        about = [u.metrics for u in one.updates]
        assert [u.metrics for u in other.updates] == about


def test_the_sum_is_the_plain_mean_to_its_last_digits() -> None:
    plain, deep = play("plain"), play(tree(3))
    for name, x in plain.params.items():
        assert torch.allclose(x, deep.params[name], rtol=1e-6, atol=1e-9)


def test_losses_below_an_aggregator_are_those_of_the_flat_run() -> None:
    faults = {"crash": 0.2, "offline": 0.2}
    flat, deep = (play(tree(k), faults=faults) for k in (0, 3))
    assert all(x.equal(deep.params[name]) for name, x in flat.params.items())
    for one, other in zip(flat.reports, deep.reports, strict=True):
        assert one.lost and other.heard == one.heard
        assert {(x.client, x.reason) for x in other.lost} == {
            (x.client, x.reason) for x in one.lost
        }


def update(client: int) -> Update:
    x = torch.tensor([1.0, -2.0, 0.5]) * client
    grad = {"w": x.float(), "b": torch.tensor([0.25, -0.125])}
    return Update(client, 1 + client, grad, metrics={"steps": 2.0, "loss": 0.5})


def session(clients: tuple[int, ...] = CLIENTS) -> Totals[Sum]:
    work = Work(
        groups=[Group(clients, SHAPES)],
        payload="delta",
        read=lambda client, payload: pytest.fail("nobody is read"),
        of_sum=lambda total: total,
        own=Secret.rehearsed(5),
    )
    return Totals(PartialSums(), work)


def answer(totals: Totals[Sum], client: int) -> bytes:
    upload = Upload(encode=bytes, update=update(client), shapes=lambda: SHAPES)
    asked = totals.ask("train")[client]
    return PartialSums().answer(asked, upload, None, client, lambda: Secret.rehearsed(0))[0]


def added(totals: Totals[Sum], clients: tuple[int, ...]) -> bytes:
    adding = Adding()
    for client in clients:
        adding.take((client,), answer(totals, client))
    ((named, message),) = adding.messages()
    assert named == clients
    return message


def test_three_levels_and_the_mean_by_hand() -> None:
    totals = session((1, 2, 3))
    top = Adding()
    top.take((2, 3), added(totals, (2, 3)))
    top.take((1,), answer(totals, 1))
    ((named, message),) = top.messages()
    totals.take_sum(named, message)
    (total,) = totals.open().found
    # weights 2, 3 and 4 of clients 1, 2 and 3: (2 * 1 + 3 * 2 + 4 * 3) / 9 = 20 / 9
    wanted = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) * 20 / 9
    assert torch.equal(total.tensors["w"], wanted.float())
    assert torch.equal(total.tensors["b"], torch.tensor([0.25, -0.125]))
    said = {"examples": 9.0, "clients": 3.0, "steps": 6.0, "loss": 0.5, "clipped": 0.0}
    assert said.items() <= total.about.items() and total.clients == (1, 2, 3)


def test_a_sum_that_does_not_fit_is_refused() -> None:
    totals = session()
    message = added(totals, (0, 1))
    for clients in [(0,), (0, 2), (0, 1, 2)]:
        with pytest.raises(ProtocolError, match="of others than were asked"):
            totals.take_sum(clients, message)
    other, _, words = decode_sum(message)
    with pytest.raises(ProtocolError, match="of others than were asked"):
        totals.take_sum((0, 1), encode_sum(bytes(8), (0, 1), words))
    short = Words(words.values[:-1], words.about)
    with pytest.raises(ProtocolError, match="its words are others"):
        totals.take_sum((0, 1), encode_sum(other, (0, 1), short))
    totals.take_sum((0, 1), message)
    with pytest.raises(ProtocolError, match="in two sums"):
        totals.take("train", 1, answer(totals, 1))
    adding = Adding()
    adding.take((3,), answer(totals, 3))
    with pytest.raises(ProtocolError, match="in two sums"):
        adding.take((3,), answer(totals, 3))
    with pytest.raises(ProtocolError, match="its words are others"):
        adding.take((4,), encode_sum(other, (4,), short))
    assert np.array_equal(decode_sum(next(adding.messages())[1])[2].values, adding_alone(totals, 3))


def adding_alone(totals: Totals[Sum], client: int) -> Any:
    return decode_sum(answer(totals, client))[2].values


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["aggregator=median"], "aggregator.kind = 'median' reads single contributions, which "),
        (
            ["codec=quantised"],
            "codec.kind = 'quantised': channel.kind = 'partial_sums' sends words",
        ),
        (["strategy=spry", "codec=scalars"], "own directions cannot be summed"),
        (["topology=gossip", "topology.graph=ring"], "has no server"),
        (["start=closed_form", "start.f=1"], "'partial_sums' shows none"),
    ],
)
def test_what_a_sum_cannot_do_is_refused_with_the_remedy(
    world: World, tmp_path: Path, settings: list[str], said: str
) -> None:
    with pytest.raises(UserError, match="partial_sums") as refused:
        run(world.config(tmp_path, "strategy=fedavg", "channel=partial_sums", *settings))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "sets",
    [
        # every client trains units of its own, and whoever shares them is in one sum
        ["strategy=spry", "codec=dense", "engine.emulate=true", "client.max_steps=1"],
        ["strategy=fedavg", "start=closed_form", "guard=held_out", "model.pooling=mean"],
    ],
)
def test_a_run_with_its_start_and_its_guard(world: World, tmp_path: Path, sets: list[str]) -> None:
    more = ["cohort=6", "rounds=1", "data.client_test_fraction=0.3", *sets]
    more.append("channel=partial_sums")
    flat = world.run(tmp_path, *more, "name=flat")
    deep = world.run(tmp_path, *more, "channel.aggregators=2", "name=deep")
    assert deep.summary["digest"] == flat.summary["digest"]
    one, other = (lines(r.folder, "rounds.jsonl") for r in (flat, deep))
    for name in ("loss", "replies", "cohort", "steps"):
        assert [line[name] for line in one] == [line[name] for line in other]
    assert all(a["bytes_up"] > b["bytes_up"] > 0 for a, b in zip(one, other, strict=True))


def test_a_site_speaks_for_itself_only() -> None:
    totals = session()
    with pytest.raises(ProtocolError, match="of others than were asked"):
        totals.take("train", 0, added(totals, (0, 1)))
    strange = replace(totals.work, groups=[Group((0,), SHAPES)])
    alone = Totals(PartialSums(), strange)
    with pytest.raises(ProtocolError, match="of others than were asked"):
        alone.take_sum((0, 1), added(totals, (0, 1)))
