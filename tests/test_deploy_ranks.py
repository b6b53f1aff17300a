"""Ranks by what sites say of their memory (``sharing.ranks = "auto"`` between machines)."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from deployment import FakePost, deployed, make_sites, remote
from federation import Interrupted, StopAfter, lines
from forefed.config.compat import check
from forefed.core.errors import ProtocolError, UserError
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.deploy.remote import memory_said
from forefed.deploy.settings import for_sites
from forefed.gradients.backprop import Backprop
from forefed.run import run
from forefed.sharing import Ranks

MB = 1_000_000
BY_MEMORY = ["strategy=flexlora", "sharing={kind='ranks', ranks='auto'}", "rounds=2"]
MEMORY = {"large": "200MB", "main": "95MB", "middle": "75MB"}


@pytest.fixture
def scenes(monkeypatch):
    """What was planned for. A step takes 10 MB a rank beside 50 of weights: of 8, 4, 2 and 1 the
    largest is in 200 MB, 4 in 95 and 2 in 75."""
    planned = []

    def plan(scene, **more):
        planned.append(scene)
        total = 50 * MB + 10 * MB * scene.adapter.r
        other = SimpleNamespace(engine=SimpleNamespace(kind="forward"), total=1)
        whole = SimpleNamespace(engine=Backprop(), total=total)
        part = SimpleNamespace(engine=Backprop(micro_batch=1), total=total - 5 * MB)
        return SimpleNamespace(rows=[other, part, whole])

    monkeypatch.setattr("forefed.run.client_engines.plan", plan)
    return planned


def sites_of(world, out, memory=MEMORY):
    sites = make_sites(world, out)
    for name, size in memory.items():
        raw = {**sites[name].settings.model_dump(mode="json"), "memory": size}
        sites[name].settings = type(sites[name].settings).model_validate(raw)
    return FakePost(sites)


def ranks_sent(post):
    """Of every site, the ranks of the factors that came back with its updates."""
    found = {}
    for name, asked in post.asked:
        if asked.kind == "train":
            held = post.sites[name].warm[1]
            order = held.trainer.sharing.form_of(0, params_of(asked))
            found.setdefault(name, set()).add(order)
    return found


def params_of(asked):
    from forefed.wire.orders import decode_broadcast

    return decode_broadcast(asked.blobs["state"])[0]


def test_every_site_has_the_rank_that_its_memory_bears(world, tmp_path, scenes):
    """And the run is, to the bit, that of the same ranks by number."""
    said: list[str] = []
    post = sites_of(world, tmp_path / "a")
    by_memory = run(
        deployed(world, tmp_path / "a", *BY_MEMORY), connect=connect_by(post, said.append)
    )
    assert ranks_sent(post) == {"large": {8}, "main": {4}, "middle": {2}}
    assert "main: rank 4 in 95.0 MB" in said
    assert [s.adapter.r for s in scenes] == [8, 4, 2, 1]
    assert {(s.seq, s.batch) for s in scenes} == {(12, 4)}, "as long as texts are cut to"
    config = deployed(world, tmp_path / "b", *BY_MEMORY, "sharing.ranks=[8, 4, 2]")
    by_number = run(config, connect=connect_by(FakePost(make_sites(world, tmp_path / "b"))))
    assert by_memory.summary["digest"] == by_number.summary["digest"]
    kept = json.loads((by_memory.folder / "plan.json").read_text())
    assert kept["costs"] == [[8, 130 * MB], [4, 90 * MB], [2, 70 * MB], [1, 60 * MB]]


def test_it_goes_on_with_the_ranks_of_then(world, tmp_path, scenes):
    """Measured once; sites that say the same have the same."""
    digests = []
    for place in ("whole", "parts"):
        config = deployed(world, tmp_path / place, *BY_MEMORY)
        connect, resume = connect_by(sites_of(world, tmp_path / place)), False
        if place == "parts":
            with pytest.raises(Interrupted):
                run(config, connect=connect, watcher=StopAfter(1))
            connect, resume = connect_by(sites_of(world, tmp_path / place)), True
        digests.append(run(config, connect=connect, resume=resume).summary["digest"])
    assert digests[0] == digests[1] and len(scenes) == 8, "four ranks a run, measured once"


def test_sites_without_memory_or_with_too_little_take_no_part(world, tmp_path, scenes):
    said: list[str] = []
    post = sites_of(world, tmp_path, {"large": "1GB", "main": "59MB"})
    config = deployed(world, tmp_path, *BY_MEMORY, "rounds=1")
    done = run(config, connect=connect_by(post, said.append))
    assert [line["cohort"] for line in lines(done.folder, "rounds.jsonl")] == [[0]]
    assert any(
        "main does not take part: its memory = 59.0 MB is less than the 60.0" in x for x in said
    )
    assert any("middle does not take part: refused: no memory is named" in x for x in said)


def test_memory_is_told_to_nobody_who_does_not_ask(world, tmp_path):
    site = sites_of(world, tmp_path).sites["main"]
    plain = site(Envelope("join", "run", text=for_sites(deployed(world, tmp_path))))
    asking = site(Envelope("join", "run", text=for_sites(deployed(world, tmp_path, *BY_MEMORY))))
    assert "memory" not in json.loads(plain.text)
    assert json.loads(asking.text)["memory"] == 95 * MB


@pytest.mark.parametrize("said", [None, True, "95MB", 0, -1, 2**70, 1.5])
def test_nonsense_is_no_memory(said):
    with pytest.raises(ProtocolError, match="names no memory"):
        memory_said("a", {"memory": said})


def test_a_server_of_such_a_run_believes_no_nonsense():
    told: list[str] = []
    sharing = Ranks(ranks="auto").costing([(4, 100), (2, 50)])
    loop, _ = remote(
        {"a": {"memory": 80}, "b": {"memory": "much"}, "c": {"memory": 40}}, say=told.append
    )
    transport = replace(loop.transport, sharing=sharing)
    assert list(transport.members()) == [0] and transport.memory == {0: 80}
    heard = sharing.hearing(transport.memory)
    assert heard.form(0) == 2 and any("a: rank 2 in" in x for x in told)


def test_what_cannot_be_planned_is_refused(world, tmp_path, scenes):
    with pytest.raises(UserError, match=r"client\.batch_size = 'all' is at a site"):
        check(deployed(world, tmp_path, *BY_MEMORY, "client.batch_size=all"))
    config = deployed(world, tmp_path, *BY_MEMORY, "engine=sam")
    with pytest.raises(UserError, match="is not measured; name the ranks"):
        run(config, connect=connect_by(sites_of(world, tmp_path)))
