"""Sites that follow by records: the missed rounds, the server's bits, a way out where they fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from deployment import FakePost, deployed, make_sites, rehearsal
from federation import Interrupted, StopAfter, World, lines
from forefed.core.types import Json
from forefed.deploy.connect import connect_by
from forefed.deploy.journal import FOLLOWED, Journal
from forefed.run import Watcher, run
from forefed.run.rebuild import replay_log

SCALARS = ["codec=scalars", "directions.head_k=8", "client.max_steps=1"]
FOLLOWING = {
    "own directions": [
        "strategy=spry",
        "directions.k=4",
        *SCALARS,
        "download=scalars",
        "server=yogi",
    ],
    "curvature": ["strategy=hiso", "directions.k=4", *SCALARS],
    "pool": ["strategy=fedkseed", "adapter=lora", "directions.size=32", "client.max_steps=1"],
}


class Changing(Watcher):
    """Changes the world of a post after certain rounds."""

    def __init__(self, post: FakePost, offline: dict[int, set[str]]):
        self.post, self.offline = post, offline

    def round(self, line: Json) -> None:
        self.post.offline = self.offline.get(line["round"], self.post.offline)


def kinds(post: FakePost, name: str) -> list[tuple[int, str]]:
    """Round and what was sent, of every order that a site received."""
    orders = [e for site, e in post.asked if site == name and e.kind == "train"]
    return [(e.round, next(iter(e.blobs.keys() - {"order"}))) for e in orders]


@pytest.mark.parametrize("kind", FOLLOWING)
def test_sites_that_follow_hold_the_rehearsals_bits(
    kind: str, world: World, tmp_path: Path
) -> None:
    more = [*FOLLOWING[kind], "rounds=3", "evaluate.every=3"]
    alone = run(rehearsal(world, tmp_path / "a", *more))
    post = FakePost(make_sites(world, tmp_path / "b"))
    together = run(deployed(world, tmp_path / "b", *more), connect=connect_by(post))
    assert together.summary["digest"] == alone.summary["digest"]
    assert [r["replies"] for r in lines(together.folder, "rounds.jsonl")] == [3, 3, 3]
    first = "missed" if kind == "pool" else "state"
    assert kinds(post, "main") == [(1, first), (2, "missed"), (3, "missed")]
    assert replay_log(together.folder).digest == together.summary["digest"]


def test_a_site_that_missed_rounds_receives_them(world: World, tmp_path: Path) -> None:
    """It is away in rounds 2 and 3 and its worker starts anew; nothing but its disk remembers."""
    config = deployed(world, tmp_path, *FOLLOWING["own directions"], "rounds=5", "adapter=lora")
    post = FakePost(make_sites(world, tmp_path))
    watcher = Changing(post, {1: {"main"}, 3: set()})
    result = run(config, connect=connect_by(post), watcher=watcher)
    assert kinds(post, "main") == [(1, "state"), (4, "missed"), (5, "missed")]
    sent = [len(e.blobs["missed"]) for n, e in post.asked if n == "main" and "missed" in e.blobs]
    assert sent[0] > 1.5 * sent[1]
    assert [r["replies"] for r in lines(result.folder, "rounds.jsonl")] == [3, 2, 2, 3, 3]
    assert replay_log(result.folder).digest == result.summary["digest"]


@pytest.mark.parametrize("loss", ["disk", "other bits"])
def test_a_site_that_cannot_follow_gets_the_parameters(
    loss: str, world: World, tmp_path: Path
) -> None:
    config = deployed(world, tmp_path, *FOLLOWING["own directions"], "rounds=4", "adapter=lora")
    post = FakePost(make_sites(world, tmp_path))
    site = post.sites["main"]

    class Spoils(Watcher):
        def round(self, line: Json) -> None:
            if line["round"] != 1:
                return
            (path,) = site.folder.glob(f"done/*/{FOLLOWED}")
            if loss == "disk":
                path.unlink()
                return
            journal, run_id = Journal(site.folder / "done"), path.parent.name
            state = journal.followed(run_id)
            name = next(iter(state.params))
            params = {**state.params, name: torch.nextafter(state.params[name], torch.tensor(9.0))}
            journal.keep_followed(run_id, dataclasses.replace(state, params=params))

    result = run(config, connect=connect_by(post), watcher=Spoils())
    assert kinds(post, "main") == [(1, "state"), (2, "missed"), (3, "state"), (4, "missed")]
    rounds = lines(result.folder, "rounds.jsonl")
    assert [r["lost"] for r in rounds] == [{}, {"error": 1}, {}, {}]
    assert replay_log(result.folder).digest == result.summary["digest"]


def test_a_restarted_server_and_sites_go_on(world: World, tmp_path: Path) -> None:
    more = [*FOLLOWING["own directions"], "rounds=4", "checkpoint_every=100", "evaluate.every=4"]
    whole = run(rehearsal(world, tmp_path / "a", *more))
    config = deployed(world, tmp_path / "b", *more)
    with pytest.raises(Interrupted):  # in round 3, when two sites have done their work
        run(
            config,
            connect=connect_by(FakePost(make_sites(world, tmp_path / "b"))),
            watcher=StopAfter(2, 2),
        )
    post = FakePost(make_sites(world, tmp_path / "b"))
    again = run(config, resume=True, connect=connect_by(post))
    assert again.summary["digest"] == whole.summary["digest"]
    assert kinds(post, "large") == [(3, "missed"), (4, "missed")]
