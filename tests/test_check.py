"""``forefed check`` says what a run would find, and refuses what it would refuse, at no cost."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from commands import Command, mistake, options, plain
from federation import World, snapshot, text_rows, write_lines
from forefed.config.config import SLOTS, Config

REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "missing file": (["data.source.path=nowhere.csv"], ["data.source.path", "nowhere.csv"]),
    "missing test file": (["data.source.test=nowhere.csv"], ["data.source.test", "nowhere.csv"]),
    "wrong column": (["data.task.text=txet"], ["data.task.text", "txet", "'text'"]),
    "wrong label column": (["data.task.label=lable"], ["data.task.label", "'label'"]),
    "wrong owner column": (
        ["partition=natural", "partition.column=sight"],
        ["partition.column", "'site'"],
    ),
    "label outside the list": (['data.task.labels=["animal", "tree"]'], ["metal"]),
    "more clients than rows": (["partition.clients=500"], ["partition.clients = 500"]),
    "cohort above the clients": (["cohort=7"], ["cohort = 7", "6"]),
    "cohort above the owners": (
        ["partition=natural", "partition.column=site", "cohort=7"],
        ["cohort = 7", "6 clients"],
    ),
    "no owner is large enough": (
        ["partition=natural", "partition.column=site", "partition.min_size=99"],
        ["partition.min_size = 99"],
    ),
    "misspelt model": (["model=minlm"], ["model.name", "did you mean 'minilm'"]),
    "model folder that has moved": (["model=models/bert"], ["model.name", "models/bert"]),
    "longer than the model": (["data.max_length=4000"], ["data.max_length = 4000", "positions"]),
    "absurd rate": (["client.optimiser.lr=1e9"], ["client.optimiser.lr", "less than"]),
    "infinite rate": (["server.lr=inf"], ["server.lr"]),
    "absurd rate of the head": (["client.optimiser.head_lr=1e9"], ["client.optimiser.head_lr"]),
    "too few rows": (["data.limit=2"], ["partition.clients"]),
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.mark.parametrize("what", REFUSED)
def test_check_refuses_what_a_run_refuses(
    what: str, forefed_command: Command, world: World, tmp_path: Path, no_network: None
) -> None:
    sets, words = REFUSED[what]
    mistake(forefed_command("check", *options(world.sets(tmp_path, *sets))), *words)
    assert not snapshot(tmp_path)


def test_check_shows_every_section_and_what_it_found(
    forefed_command: Command, world: World, tmp_path: Path, no_network: None
) -> None:
    sets = world.sets(
        *(tmp_path, "partition=natural", "partition.column=site", "cohort=3", "faults.crash=0.25"),
        *(
            "strategy=fedavg",
            'modifiers=["clip"]',
            'server.schedule=["linear"]',
            "evaluate.every=7",
        ),
    )
    said = forefed_command("check", *options(sets))
    assert said.status == 0, said.err
    shown = plain(said.out)
    for name in Config.model_fields:
        assert name in shown, name
    for place in SLOTS:
        assert place.split(".")[-1] in shown, place
    for words in (
        *("crash=0.25", "schedule=[linear(", "every=7", "modifiers clip"),
        *("text text (column; guessed", "label label (column; guessed", "3: animal, metal, tree"),
        *("6 with 1 to", "3 per round", "to train on", "bert:", "These settings work together"),
    ):
        assert words in shown, (words, shown)
    assert not snapshot(tmp_path)


def test_check_says_what_is_not_guessed_and_what_looks_odd(
    forefed_command: Command, world: World, tmp_path: Path
) -> None:
    rows = [{**row, "label": "often" if i else "once"} for i, row in enumerate(text_rows())]
    file = write_lines(tmp_path / "t.jsonl", rows)
    sets = world.sets(
        *(tmp_path / "runs", f"data.source.path='{file}'", f"data.source.test='{file}'"),
        *("data.task.text=text", "data.task.label=label", "server=adam", "server.lr=30"),
        *("client.optimiser.lr=0", "client.optimiser.head_lr=0", "aggregator=krum"),
    )
    said = forefed_command("check", *options(sets))
    shown = plain(said.out)
    assert said.status == 0 and "guessed" not in shown and "of the source's own" in shown
    for note in (
        *("server.lr = 30: adam moves every number", "client.optimiser.lr = 0: nothing is trained"),
        "aggregator.kind = 'krum' needs 5 clients a round and cohort = 3",
    ):
        assert f"note: {note}" in " ".join(shown.split())


def test_check_asks_no_hub(
    forefed_command: Command, world: World, tmp_path: Path, no_network: None
) -> None:
    sets = ["data.source={kind='hub', name='org/set'}", f"model.name='{world.bert}'"]
    said = forefed_command("check", *options([*sets, "data.max_length=12"]))
    assert said.status == 0, said.err
    assert "not looked at: the network would be asked" in plain(said.out)


def test_check_and_run_find_the_same(
    forefed_command: Command, world: World, tmp_path: Path
) -> None:
    """The clients and rows that check counts are those of the run's record."""
    import json

    sets = world.sets(tmp_path, "partition=natural", "partition.column=site", "rounds=1")
    shown = plain(forefed_command("check", *options(sets)).out)
    assert forefed_command("run", *options(sets)).status == 0
    record = json.loads((tmp_path / "run" / "partition.json").read_text())
    counts = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]["counts"]
    low, high = min(record["sizes"]), max(record["sizes"])
    assert f"{record['clients']} with {low} to {high} training rows" in shown
    assert f"{counts['examples']} to train on, {counts['test']} to test on" in shown
