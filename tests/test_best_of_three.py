"""Common, tuned or alone: what each is, and that a client keeps what its held-out rows prefer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import forefed
from forefed.core.keys import Key
from forefed.core.states import below
from forefed.core.types import Order, Params
from forefed.local import BestOfThree
from forefed.run.simulate import Rows, Simulation
from forefed.sharing.best_of_three import ALONE, CHOICE, JUDGED, MODELS, TUNED

D = 6
STEP = {"batch_size": 4, "optimiser": {"kind": "sgd", "lr": 0.3, "head_lr": 0.3}}


def rows(client: int) -> dict[str, torch.Tensor]:
    """Clients 0 and 1 follow one rule, client 2 its opposite, client 3 has a single row."""
    n = 1 if client == 3 else 15
    x = Key(3).fold("x", client).normal((n, D)).double()
    y = (x[:, 0] > 0).long()
    return {"x": x, "y": 1 - y if client == 2 else y}


def loss(params: Params, batch: Rows) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(batch["x"] @ params["w"], batch["y"])


def run(clients: list[dict[str, torch.Tensor]], rounds: int = 3, **more: Any) -> Simulation:
    client = {**STEP, **more.pop("client", {})}
    return forefed.simulate(
        loss, {"w": torch.zeros(D, 2).double()}, clients, rounds=rounds, client=client, **more
    )


@pytest.fixture(scope="module")
def found() -> Simulation:
    return run([rows(c) for c in range(4)], strategy="best_of_three")


def parts(client: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a client chooses by, and what it trains on."""
    whole = rows(client)
    order = Order(0, 1, client, ("w",), {})
    split = BestOfThree().parts(order, np.arange(len(whole["y"])))
    held, rest = ({n: x[torch.from_numpy(at)] for n, x in whole.items()} for at in split)
    return held, rest


def kept(found: Simulation, client: int) -> Params:
    return found.star.transport.store.private(client)  # type: ignore[attr-defined]


def test_common_and_own_are_fedavg_and_local_training_on_the_same_rows(found: Simulation) -> None:
    """To the bit: the change that is sent, and the model that is trained alone."""
    trained = [parts(c)[1] for c in range(4)]
    assert [len(t["y"]) for t in trained] == [12, 12, 12, 1]
    fedavg = run(trained, strategy="fedavg")
    assert torch.equal(found.params["w"], fedavg.params["w"])
    alone = run(trained, strategy="fedavg", sharing="local_only")
    for c in range(4):
        assert torch.equal(kept(found, c)[f"{JUDGED}/w"], alone.own(c)["w"])
    whole = run([rows(c) for c in range(4)], strategy="fedavg", sharing="local_only")
    for c in range(4):  # what answers has learned from all rows
        assert torch.equal(kept(found, c)[f"{ALONE}/w"], whole.own(c)["w"])
    assert [r.bytes_up for r in found.reports] == [r.bytes_up for r in fedavg.reports]


def test_the_choice_is_that_of_the_held_out_rows(found: Simulation) -> None:
    """Of the last round: the model that came, that less the change which was sent, the own one."""
    two = run([rows(c) for c in range(4)], rounds=2, strategy="best_of_three")
    sent = {u.client: u.grad["w"] for u in found.reports[-1].updates if u.grad}
    chosen = []
    for c in range(3):
        mine, held = kept(found, c), parts(c)[0]
        models = (two.params["w"], two.params["w"] - sent[c], mine[f"{JUDGED}/w"])
        which = int(mine[CHOICE])
        assert which == int(np.argmin([float(loss({"w": w}, held)) for w in models]))
        answers = (found.params["w"], mine.get(f"{TUNED}/w"), mine[f"{ALONE}/w"])[which]
        assert answers is not None and torch.equal(found.own(c)["w"], answers)
        assert (f"{TUNED}/w" in mine) == (MODELS[which] == TUNED)
        chosen.append(MODELS[which])
    assert chosen[2] == ALONE, "who follows the opposite rule keeps to itself"


def test_who_has_one_row_answers_with_the_common_model(found: Simulation) -> None:
    assert int(kept(found, 3)[CHOICE]) == 0
    assert torch.equal(found.own(3)["w"], found.params["w"])
    held, rest = BestOfThree(held_out=0.9).parts(Order(0, 1, 0, (), {}), np.arange(2))
    assert (len(held), len(rest)) == (1, 1)


def test_nothing_of_it_is_sent(found: Simulation) -> None:
    for report in found.reports:
        assert all(set(u.grad or {}) == {"w"} for u in report.updates)
        assert all(CHOICE not in n and ALONE not in n for u in report.updates for n in u.metrics)
    assert set(below(kept(found, 2), ALONE)) == {"w"}
