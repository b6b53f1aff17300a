"""``forefed check`` says what a run would find, and refuses what it would refuse, at no cost."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from commands import Command, mistake, options, plain
from federation import World, snapshot, text_rows, write_lines
from forefed.config.config import SLOTS, Config
from forefed.core.errors import UserError
from forefed.models import outline as outlines
from forefed.models.outline import outline
from forefed.models.settings import ModelSettings

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
    sets = world.sets(tmp_path, "partition=natural", "partition.column=site", "rounds=1")
    shown = plain(forefed_command("check", *options(sets)).out)
    assert forefed_command("run", *options(sets)).status == 0
    record = json.loads((tmp_path / "run" / "partition.json").read_text())
    counts = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]["counts"]
    low, high = min(record["sizes"]), max(record["sizes"])
    assert f"{record['clients']} with {low} to {high} training rows" in shown
    assert f"{counts['examples']} to train on, {counts['test']} to test on" in shown


HEAVY = ("transformers", "peft", "scipy", "pandas", "matplotlib", "sklearn", "datasets")
OF_RUNS = ("forefed.run", "forefed.plan", "forefed.audit", "forefed.report", "forefed.use")


def test_check_imports_only_what_it_uses_once_it_has_seen_the_model(
    forefed_command: Command, world: World, tmp_path: Path
) -> None:
    arguments = ["check", *options(world.sets(tmp_path))]
    assert forefed_command(*arguments).status == 0
    code = (
        f"import sys; from forefed import cli; sys.argv = {['forefed', *map(str, arguments)]!r}\n"
        "try: cli.main()\n"
        f"finally: print('there:', *sorted({{*{HEAVY + OF_RUNS!r}}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "there:"


def test_what_a_look_at_a_model_found_is_remembered_until_something_changes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    for name in ("look", "check_model"):
        real = getattr(outlines, name)
        monkeypatch.setattr(
            outlines, name, lambda *a, real=real, **k: (looks.append(a), real(*a, **k))[1]
        )
    monkeypatch.setenv("FOREFED_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(world.bert, tmp_path / "bert")
    settings = ModelSettings(name=str(folder))

    def asked(labels: tuple[str, ...] = ("a", "b")) -> int:
        before = len(looks)
        found = outline(settings, labels, "classification")
        assert found.family == "bert" and found == outline(settings, labels, "classification")
        return len(looks) - before

    assert asked() == 1 and asked() == 0
    assert asked(("a", "b", "c")) == 1  # another task
    for kept in (tmp_path / "cache").rglob("*.json"):
        kept.write_text('{"family": "bert"')
    assert asked() == 1
    config = folder / "config.json"
    os.utime(config, ns=(1, 1))
    assert asked() == 1
    config.write_text("{")
    for _ in range(2):  # a fault is no news that is kept
        with pytest.raises(UserError, match=r"config\.json"):
            outline(settings, ("a", "b"), "classification")
