"""Two levels between machines, over a post without a network: the flat run's bits, and what an
aggregator refuses or leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from commands import Command, mistake
from deployment import FakePost, connect_by, deployed, site_settings
from federation import CLASSES, World, lines, text_rows, write_lines
from forefed.core.types import Lost, Reply
from forefed.deploy.aggregator import Aggregator
from forefed.deploy.aggregator_folder import AggregatorFolder
from forefed.deploy.envelope import Envelope
from forefed.deploy.parcels import Failure
from forefed.deploy.places import read_node
from forefed.deploy.site import Site
from forefed.run import Config, run

TWELVE = tuple(f"s{i}" for i in range(12))
SUMS = ["strategy=fedavg", "channel=partial_sums", "cohort=12", "rounds=1", "client.max_steps=1"]
LEARNS = ["start=closed_form", "guard=held_out", "data.client_test_fraction=0.4"]


@pytest.fixture(scope="module")
def twelve(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    """Sites of five rows or so each."""
    root = tmp_path_factory.mktemp("twelve")
    rows = [{"text": r["text"], "label": r["label"]} for r in text_rows()]
    files = {n: write_lines(root / f"{n}.jsonl", rows[i::12]) for i, n in enumerate(TWELVE)}
    for name in TWELVE:
        (root / name).mkdir()
    return {n: Site(site_settings(world, n, files), root / n) for n in TWELVE}


def config(world: World, out: Path, *more: str) -> Config:
    names = f"partition={{kind='sites', names={json.dumps(TWELVE)}, join_s=0.5}}"
    return deployed(world, out, *SUMS, f"data.task.labels={json.dumps(CLASSES)}", names, *more)


def below(name: str, sites: Mapping[str, Site], *names: str) -> Aggregator:
    return Aggregator(name, FakePost({n: sites[n] for n in names}), poll_s=0.01, wait_s=0.2)


def test_twelve_sites_on_two_and_three_levels_give_the_flat_runs_bits(
    world: World, tmp_path: Path, twelve: dict[str, Site]
) -> None:
    flat = run(config(world, tmp_path / "flat", *LEARNS), connect=connect_by(FakePost(twelve)))
    inner = below("inner", twelve, *TWELVE[6:9])
    outer = Aggregator(
        "outer", FakePost({"inner": inner, "s9": twelve["s9"]}), poll_s=0.01, wait_s=0.2
    )
    nodes = {
        "east": below("east", twelve, *TWELVE[:6]),
        "outer": outer,
        **{n: twelve[n] for n in TWELVE[10:]},
    }
    post = FakePost(nodes)
    deep = run(config(world, tmp_path / "deep", *LEARNS), connect=connect_by(post))
    assert deep.summary["digest"] == flat.summary["digest"]
    one, other = (lines(r.folder, "rounds.jsonl") for r in (flat, deep))
    for name in ("loss", "steps", "cohort", "replies", "lost"):
        assert [line[name] for line in one] == [line[name] for line in other]
    assert [line["guard"]["rows"] for line in one] == [line["guard"]["rows"] for line in other]
    # four answers of one update's size each, in the place of twelve
    assert all(b["bytes_up"] < 0.4 * a["bytes_up"] for a, b in zip(one, other, strict=True))
    assert all(b["bytes_down"] < 0.4 * a["bytes_down"] for a, b in zip(one, other, strict=True))
    assert {e.kind for n, e in post.asked if n == "east"} == {"join", "letters"}


def test_a_site_that_fails_below_an_aggregator_is_one_loss(
    world: World, tmp_path: Path, twelve: dict[str, Site]
) -> None:
    def broken(asked: Envelope) -> Envelope:
        answer = twelve["s3"](asked)
        return answer if asked.kind != "train" else replace(answer, blobs={"update": b"nothing"})

    alone = FakePost(twelve)
    alone.tamper = {n: lambda _: [Failure("crash", "")] for n in ("s3", "s4")}
    wanted = run(config(world, tmp_path / "flat"), connect=connect_by(alone))
    east = below("east", twelve, *TWELVE[:6])
    assert isinstance(east.post, FakePost)
    east.post.sites = {**east.post.sites, "s3": broken}
    east.post.tamper = {"s4": lambda _: [Failure("crash", "it ended")]}
    post = FakePost({"east": east, **{n: twelve[n] for n in TWELVE[6:]}})
    found = run(config(world, tmp_path / "deep"), connect=connect_by(post))
    assert found.summary["digest"] == wanted.summary["digest"]
    (line,) = lines(found.folder, "rounds.jsonl")
    assert line["replies"] == 10 and line["lost"] == {"transport": 1, "crash": 1}


def test_an_aggregator_that_is_gone_or_lies_loses_its_sites_only(
    world: World, tmp_path: Path, twelve: dict[str, Site]
) -> None:
    said: list[str] = []

    def lying(asked: Envelope) -> Envelope:
        answer = east(asked)
        text = answer.text.replace('"sums": [[0,', '"sums": [[6,')
        return replace(answer, text=text)

    east = below("east", twelve, *TWELVE[:6])
    west = below("west", twelve, *TWELVE[6:9])
    post = FakePost({"east": lying, "west": west, **{n: twelve[n] for n in TWELVE[9:]}})
    connect = connect_by(post, said.append)
    lost = [
        lines(run(c, connect=connect).folder, "rounds.jsonl")[0]["lost"]
        for c in [config(world, tmp_path)]
    ]
    assert lost == [{"transport": 6}]
    assert sum("takes part" in text for text in said) == 12


def test_what_an_aggregator_is_not_for(world: World, twelve: dict[str, Site]) -> None:
    east = below("east", twelve, *TWELVE[:2])
    plain = json.dumps({"channel": {"kind": "plain"}})
    refused = east(Envelope("join", "r", text=plain))
    assert refused.kind == "refused" and "set channel.kind = 'partial_sums'" in refused.text
    assert "is not asked 'train'" in east(Envelope("train", "r")).text
    strange = {"letters": [["join", 0, "s0", {}]], "settings": "", "deadline_s": 1}
    for text in ("{}", "[]", json.dumps(strange)):
        assert east(Envelope("letters", "r", text=text)).kind == "refused"
    sums = json.dumps({"channel": {"kind": "partial_sums"}})
    letters = {"settings": sums, "deadline_s": 1.0, "letters": [["train", 4, "nobody", {}]]}
    answer = east(Envelope("letters", "r", 1, 4, json.dumps(letters)))
    assert json.loads(answer.text)["lost"] == [[4, "offline", "it is not connected to 'east'"]]


def test_outcomes_are_either() -> None:
    assert Reply(1, 2, b"", 0).clients == Lost(1, 2, "crash").clients == (2,)
    assert Reply(1, 2, b"", 0, (2, 5)).clients == (2, 5)


def test_an_aggregators_folder_is_a_server_and_a_node(
    forefed_command: Command, tmp_path: Path
) -> None:
    hub, east = tmp_path / "hub", tmp_path / "east"
    assert forefed_command("server", "init", hub).status == 0
    place = ["--name", "east", "--server", "hub.example:443", "--ca", hub / "ca.crt"]
    said = forefed_command("aggregator", "init", east, *place, "--reached-by", "east.example")
    assert said.status == 0 and "up/node.pub" in said.out
    folder = AggregatorFolder(east)
    node = read_node(folder.up.root)
    assert (node.name, node.server, node.port) == ("east", "hub.example:443", 9093)
    assert folder.up.authority.read_bytes() == (hub / "ca.crt").read_bytes()
    assert (east / "ca.crt").read_bytes() != (hub / "ca.crt").read_bytes()
    programs = {p.name: p for p in folder.programs(node)}
    assert [*programs] == ["superlink", "superexec", "relay", "supernode", "superexec-up"]
    # Flower's files of the node are not those of the server
    homes = {n: {**folder.server.environment(), **p.environment} for n, p in programs.items()}
    assert len({homes[n]["FLWR_HOME"] for n in ("superlink", "supernode")}) == 2
    mistake(forefed_command("aggregator", "init", east, *place), "there is a server here already")
    mistake(forefed_command("aggregator", "start", hub), "'forefed aggregator init' makes one")
    mistake(
        forefed_command("aggregator", "init", tmp_path / "x", *place[:-1], tmp_path / "none"),
        "there is no such certificate",
    )
