"""Private parameters stay at the client, survive a stop, and make each client its own model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import forefed
from commands import Command, mistake
from federation import Interrupted, StopAfter, World, lines
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Params, Unit
from forefed.run import run
from forefed.run.simulate import Rows
from forefed.sharing import Everything, PersonalHead
from forefed.use import predict as use
from forefed.wire.orders import encode_broadcast

UNITS = (Unit("body", ("body",), 0, 32), Unit("head", ("head",), 1, 24, is_head=True))
START = {"body": 0.3 * Key(1).normal((4, 8)), "head": torch.zeros(8, 3)}


def loss(params: Params, batch: Rows) -> Tensor:
    logits = torch.tanh(batch["x"] @ params["body"]) @ params["head"]
    return torch.nn.functional.cross_entropy(logits, batch["y"])


def permuted_clients() -> list[Rows]:
    """Three clients that agree on the classes and name them differently."""
    centers, shares = 2 * Key(2).normal((3, 4)), []
    for i in range(3):
        classes = torch.arange(48) % 3
        x = centers[classes] + 0.3 * Key(3).fold(i).normal((48, 4))
        shares.append({"x": x, "y": (classes + i) % 3})
    return shares


def accuracy(sharing: str) -> float:
    clients = permuted_clients()
    client = {"batch_size": 16, "epochs": 2, "optimiser": {"kind": "sgd", "lr": 0.3}}
    found = forefed.simulate(
        loss, START, clients, rounds=12, units=UNITS, head=["head"], sharing=sharing, client=client
    )
    right = []
    for i, rows in enumerate(clients):
        own = found.own(i)
        logits = torch.tanh(rows["x"] @ own["body"]) @ own["head"]
        right.append(float((logits.argmax(1) == rows["y"]).double().mean()))
    return sum(right) / len(right)


def test_fedper_fits_clients_that_name_the_classes_differently_and_fedavg_cannot() -> None:
    assert accuracy("personal_head") > 0.95
    assert accuracy("everything") < 0.6


def test_splits_by_hand() -> None:
    everything, personal = Everything().split(UNITS, 1), PersonalHead().split(UNITS, 1)
    assert everything.shared == {"body", "head"} and not everything.private
    assert (personal.shared, personal.private) == ({"body"}, {"head"})


def test_the_private_head_never_travels() -> None:
    result = forefed.simulate(
        loss,
        START,
        permuted_clients(),
        rounds=1,
        units=UNITS,
        head=["head"],
        sharing="personal_head",
    )
    assert torch.equal(result.params["head"], START["head"])
    assert not torch.equal(result.own(0)["head"], result.own(1)["head"])
    (order, *_) = result.star.plan(result.state).values()
    assert order.assigned == ("body",) and order.params.keys() == {"body"}
    assert b"head" not in encode_broadcast(order)
    assert all(
        update.grad and update.grad.keys() == {"body"} for update in result.reports[0].updates
    )


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="none of the parameters"):
        forefed.simulate(loss, START, permuted_clients(), sharing="personal_head")


def test_private_heads_survive_a_stop_and_are_tested_each_with_its_own(
    world: World, tmp_path: Path, forefed_command: Command
) -> None:
    sets = ["strategy=fedavg", "sharing=personal_head", "cohort=6", "evaluate.clients=6"]
    whole = world.run(tmp_path, *sets, "name=whole")
    config = world.config(tmp_path, *sets, "name=parts")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(1))
    parts = run(config, resume=True)
    assert parts.summary["digest"] == whole.summary["digest"]
    saved = [load_file(r.folder / "checkpoint.safetensors") for r in (whole, parts)]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(x, saved[1][name]) for name, x in saved[0].items())
    heads = {n for n in saved[0] if n.startswith("client/") and "/private/" in n}
    assert {n.split("/")[1] for n in heads} == set("012345")
    ours, theirs = (lines(r.folder, "evaluations.jsonl") for r in (whole, parts))
    assert ours == theirs
    last = {e["split"]: e for e in ours if e["round"] == 2}
    assert last.keys() == {"test", "clients", "personal"}
    assert last["personal"]["loss"] != last["clients"]["loss"]
    each = json.loads((whole.folder / "clients.json").read_text())
    assert each["round"] == 2 and [c["client"] for c in each["clients"]] == [*range(6)]
    for split in ("clients", "personal"):
        known = [c[split] for c in each["clients"] if c[split] is not None]
        assert len(known) == last[split]["clients"] and min(known) == last[split]["client_worst"]
        assert sum(c["n"] for c in each["clients"]) == last[split]["n"]
    for words in (["predict", whole.folder, "a text"], ["export", whole.folder, tmp_path / "new"]):
        said = forefed_command(*words)
        assert said.status == 0 and "personal_head" not in said.out
        assert "note: sharing.kind = 'personal_head'" in said.err and "untrained" in said.err
    card = (whole.folder / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "**Mind**: sharing.kind = 'personal_head'" in card
    assert card == (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    mean = 100 * last["personal"]["client_mean"]
    assert f"| each with its own | {last['personal']['clients']} | 2 | {mean:.1f} % |" in card


def test_predictions_as_a_client_are_those_of_its_own_head(
    world: World, tmp_path: Path, forefed_command: Command
) -> None:
    """By hand: the common parameters with the client's own; and nobody is taken for a client."""
    sets = ["strategy=fedavg", "sharing=personal_head", "cohort=2", "client.optimiser.lr=0.1"]
    config = world.config(tmp_path, *sets, "name=own")
    folder = run(config).folder
    saved = load_file(folder / "checkpoint.safetensors")
    heads = {int(n.split("/")[1]) for n in saved if n.startswith("client/") and "/private/" in n}
    trained, other = min(heads), min({*range(6)} - heads)
    state = use.trained(folder, config, client=trained)[1]
    start = f"client/{trained}/private/"
    own = {n.removeprefix(start): x for n, x in saved.items() if n.startswith(start)}
    assert own and all(torch.equal(state.params[n], x) for n, x in own.items())
    common = use.trained(folder, config)[1].params
    assert all(torch.equal(state.params[n], x) for n, x in common.items() if n not in own)
    said = forefed_command("predict", folder, "w5 w6", "--client", trained)
    assert said.status == 0 and not said.err
    assert said.out != forefed_command("predict", folder, "w5 w6").out
    mistake(forefed_command("predict", folder, "w5", "--client", other), f"--client {other}")
    mistake(forefed_command("predict", folder, "w5", "--client", "6"), "clients 0 to 5")
    plain = world.run(tmp_path, "name=plain").folder
    mistake(
        forefed_command("predict", plain, "w5", "--client", "0"), "keep nothing", "leave it out"
    )
