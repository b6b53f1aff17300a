"""A site: what it refuses, what leaves it, and that it does every task once."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from deployment import NAMES, FakePost, deployed, make_sites, site_settings, write_rows
from faults import fault
from federation import CLASSES
from forefed.core.errors import ProtocolError, UserError
from forefed.core.states import below
from forefed.core.types import ClientContext, Update
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.deploy.journal import Journal
from forefed.deploy.own import of_site
from forefed.deploy.settings import METRICS, Refusal, at_site, for_sites, read_site
from forefed.deploy.site import checked, read_order
from forefed.run import run
from forefed.run.build import build
from forefed.use import predict as use
from forefed.wire.message import pack, unpack
from forefed.wire.orders import encode_broadcast, encode_order

KEEPING = ["strategy=fedavg", "client.keep_optimiser=true"]


@pytest.fixture(scope="module")
def order(world, tmp_path_factory):
    """The question "train" of round 1 to the site "large", and what it takes to make more."""
    out = tmp_path_factory.mktemp("order")
    post = FakePost(make_sites(world, out))
    federation = build(deployed(world, out, *KEEPING), connect=connect_by(post))
    orders = federation.star.plan(federation.start())
    asked = next(e for _, e in post.asked)
    blobs = {"state": encode_broadcast(orders[0]), "order": encode_order(orders[0])}
    return replace(asked, kind="train", round=1, client=0, blobs=blobs)


@pytest.fixture
def site(world, tmp_path):
    return make_sites(world, tmp_path)["large"]


def test_the_server_learns_no_place_and_sites_get_no_place(world, tmp_path):
    config = deployed(world, tmp_path)
    text = for_sites(config)
    assert "source" not in text and str(tmp_path) not in text
    assert json.loads(text)["data"]["task"]["labels"] == list(CLASSES)
    here = site_settings(world, "main", write_rows(tmp_path / "rows"))
    local = at_site(text, here, tmp_path / "here")
    assert local.data.source.path.name == "main.jsonl" and local.out == tmp_path / "here"
    assert local.client == config.client and local.engine == config.engine


def test_all_settings_travel_but_what_is_the_servers_own(world, tmp_path):
    config = deployed(world, tmp_path)
    told = json.loads(for_sites(config))
    own = {"attack", "name", "out", "partition", "faults", "evaluate", "guard", "memory"}
    own |= {"workers"}
    assert set(told) == {*type(config).model_fields, "digest"} - own
    assert set(type(config.data).model_fields) - set(told["data"]) == {
        *("source", "test_fraction", "test_on", "limit", "split_seed")
    }


def test_settings_that_a_site_understands_otherwise_are_refused(world, tmp_path):
    here = site_settings(world, "main", write_rows(tmp_path / "rows"))
    told = json.loads(for_sites(deployed(world, tmp_path)))
    del told["client"]["max_steps"]  # as of a server without this setting: here it has a default
    with pytest.raises(Refusal, match="mean something else"):
        at_site(json.dumps(told), here, tmp_path / "here")
    with pytest.raises(Refusal, match="not known here"):  # as of a server with one setting more
        at_site(json.dumps({**told, "privacy": {"sigma": 1}}), here, tmp_path / "here")


def test_a_site_reads_its_own_columns(world, tmp_path):
    columns = {"text": "note", "label": "code"}
    data = {"source": {"kind": "files", "path": str(tmp_path / "x.csv")}, "columns": columns}
    here = site_settings(world, "main", write_rows(tmp_path / "rows"), data=data)
    local = at_site(for_sites(deployed(world, tmp_path)), here, tmp_path)
    assert (local.data.task.text, local.data.task.label) == ("note", "code")


POLICIES = {
    "strategy": ({"policy": {"strategies": ["spry"]}}, "strategy 'fedavg'"),
    "epochs": ({"policy": {"max_epochs": 1}}, "client.epochs = 2, at most 1"),
    "steps": ({"policy": {"max_steps": 1}}, "client.max_steps = 2, at most 1"),
    "examples": ({"policy": {"min_examples": 99}}, "fewer than 99"),
    "rows": ({"policy": {"min_rows": 9}}, "an update of 8 rows"),
    "model": ({"models": {"minilm": "minilm"}}, "is not allowed here"),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_site_refuses_by_its_policy_and_says_why(world, tmp_path, policy):
    more, why = POLICIES[policy]
    site = make_sites(world, tmp_path, **more)["large"]
    settings = for_sites(deployed(world, tmp_path, "strategy=fedavg", "client.epochs=2"))
    answer = site(Envelope("join", "run", text=settings))
    assert answer.kind == "refused" and why in answer.text


def test_a_site_leaves_after_the_rounds_it_has_promised(world, tmp_path, order):
    site = make_sites(world, tmp_path, policy={"max_rounds": 3})["large"]
    answer = site(replace(order, round=4))
    assert answer.kind == "refused" and "at most 3" in answer.text


def test_a_refusal_reaches_the_server_and_the_others_go_on(world, tmp_path):
    sites = make_sites(world, tmp_path)
    strict = make_sites(world, tmp_path, policy={"strategies": ["spry"]})["main"]
    said: list[str] = []
    connect = connect_by(FakePost({**sites, "main": strict}), said.append)
    result = run(deployed(world, tmp_path, "strategy=fedavg", "rounds=1"), connect=connect)
    assert result.summary["rounds"] == 1
    assert "main does not take part: refused: strategy 'fedavg' is not allowed here" in said


def test_what_went_wrong_stays_at_the_site(world, tmp_path, caplog):
    site = make_sites(world, tmp_path)["large"]
    settings = for_sites(deployed(world, tmp_path))
    path = site.settings.data.source.path
    secret = "patient 4711"
    path.write_text(json.dumps({"text": "w5", "label": secret}) + "\n")
    with caplog.at_level(logging.ERROR):
        answer = site(Envelope("join", "run", text=settings))
    assert answer.kind == "failed" and answer.text.startswith("UserError;")
    assert secret not in answer.text and secret in caplog.text


@fault(
    "order: delivered twice, or again after a restart", "one round", "done once; the same answer"
)
def test_a_task_is_done_once_however_often_it_is_asked_for(site, order, monkeypatch):
    first = site(order)
    assert first.kind == "trained"
    monkeypatch.setattr("forefed.local.training.Trainer.__call__", None)  # would fail
    assert site(order) == first
    site.warm = None  # as after a restart
    assert site(order) == first


@fault("order: delivered twice", "with kept moments", "they move once")
def test_a_second_delivery_moves_no_moments(site, order):
    twice, once = site, replace(site, folder=site.folder.parent / "copy")
    second = at_round(order, 2)
    twice(order), twice(order)
    once(order)
    assert twice(second) == once(second)
    fresh = replace(site, folder=site.folder.parent / "fresh")
    assert fresh(second) != once(second)  # the moments do matter


def test_a_server_that_goes_back_to_its_checkpoint_gets_the_same_answers(site, order):
    answers = [site(at_round(order, r)) for r in (1, 2)]
    assert [site(at_round(order, r)) for r in (1, 2)] == answers


def test_a_round_that_is_done_anew_is_done_from_the_moments_before_it(site, order, world, tmp_path):
    site(order)
    second = at_round(order, 2)
    kept = site(second)
    other = replace(second, text=for_sites(deployed(world, tmp_path, *KEEPING, "rounds=4")))
    assert other.text != second.text
    assert site(other).blobs == kept.blobs


def at_round(asked: Envelope, number: int) -> Envelope:
    meta, _ = unpack(asked.blobs["order"], "order")
    order = pack("order", {**meta, "r": number})
    return replace(asked, round=number, blobs={**asked.blobs, "order": order})


BROKEN = {
    "cut": lambda e: replace(e, blobs={**e.blobs, "state": e.blobs["state"][:-1]}),
    "one blob": lambda e: replace(e, blobs={"order": e.blobs["order"]}),
    "other round": lambda e: replace(e, round=2),
    "other client": lambda e: replace(e, client=1),
    "a path as run": lambda e: replace(e, run="../../x"),
    "an answer": lambda e: replace(e, kind="trained"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_question_fails_and_touches_nothing(site, order, fault):
    before = sorted(site.folder.rglob("*"))
    answer = site(BROKEN[fault](order))
    assert answer.kind == "failed" and "ProtocolError" in answer.text and not answer.blobs
    assert sorted(site.folder.rglob("*")) == before


def test_settings_of_another_version_are_refused(site):
    answer = site(Envelope("join", "run", text='{"novelty": 1}'))
    assert answer.kind == "refused" and "versions" in answer.text


def test_what_leaves_is_what_was_assigned_and_what_the_policy_allows(world, tmp_path, order):
    site = make_sites(world, tmp_path, policy={"metrics": ["loss"]})["large"]
    answer = site(order)
    meta, body = unpack(answer.blobs["update"], "dense")
    assert meta.keys() == {"r", "c", "n", "m"} and meta["m"].keys() == {"loss"}
    prepared = site.prepared(order.text)
    asked = read_order(prepared, order, Journal(site.folder / "done"))
    assert set(safetensors.torch.load(bytes(body))) == set(asked.assigned)
    assert answer.text == "" and answer.blobs.keys() == {"update"}


def test_nothing_else_may_leave(world, tmp_path, order):
    site = make_sites(world, tmp_path, policy={"metrics": ["loss"]})["large"]
    prepared = site.prepared(order.text)
    asked = read_order(prepared, order, Journal(site.folder / "done"))
    grad = {n: asked.params[n] for n in asked.assigned}
    codec = prepared.config.codec
    checked(
        prepared, asked, codec.encode(Update(0, 5, grad), ClientContext(order=asked)), site.settings
    )
    more = codec.encode(
        Update(0, 5, {**grad, "text": grad[asked.assigned[0]]}), ClientContext(order=asked)
    )
    told = codec.encode(
        Update(0, 5, grad, metrics={"loss": 1.0, "steps": 2.0}), ClientContext(order=asked)
    )
    for payload in (more, told):
        with pytest.raises(ProtocolError):
            checked(prepared, asked, payload, site.settings)


def test_the_policy_knows_every_metric_of_local_training(site, order):
    meta, _ = unpack(site(order).blobs["update"], "dense")
    assert {n.split("/")[0] for n in meta["m"]} <= set(METRICS)
    assert {"loss", "steps", "forwards"} <= meta["m"].keys()


def test_the_journal_forgets_what_no_server_can_ask_for(tmp_path):
    journal = Journal(tmp_path)
    for r in (1, 2, 4, 7, 8):
        journal.keep("run", r, f"task {r}", b"x", {}, back=3)
    assert journal.rounds("run") == [
        4,
        7,
        8,
    ]  # 4: the state before round 5, to which it may go back
    journal.keep("run", 7, "task 7", b"y", {}, back=3)
    assert journal.rounds("run") == [4, 7]
    assert journal.find("run", 7, "task 7") == b"y" and journal.find("run", 7, "another") is None
    for i in range(6):
        journal.keep(f"other{i}", 1, "task", b"x", {}, back=1)
    assert len(list(tmp_path.iterdir())) == 4


@fault("site: a damaged file of its memory", "at the order", "a UserError that names the file")
def test_a_damaged_journal_is_a_users_mistake(tmp_path):
    journal = Journal(tmp_path)
    journal.keep("run", 1, "task", b"x", {}, back=1)
    (tmp_path / "run" / "1.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="damaged"):
        journal.find("run", 1, "task")


def test_site_settings_are_closed_and_say_where(tmp_path):
    with pytest.raises(UserError, match="forefed site init"):
        read_site(tmp_path)
    (tmp_path / "site.toml").write_text('name = "a"\nserver = "h:1"\ncolour = 1\n[data.source]\n')
    with pytest.raises(UserError, match=r"site\.toml.*colour"):
        read_site(tmp_path)
    source = '[data.source]\nkind = "files"\npath = "rows.csv"\n'
    (tmp_path / "site.toml").write_text(f'name = "a"\nserver = "h:1"\n{source}')
    assert read_site(tmp_path).data.source.path == tmp_path / "rows.csv"


def test_every_site_of_the_tests_is_another(world, tmp_path):
    assert len({s.settings.data.source.path for s in make_sites(world, tmp_path).values()}) == 3
    assert set(NAMES) == set(make_sites(world, tmp_path))


def test_private_heads_stay_at_their_sites_and_grow_there(world, tmp_path):
    sites = make_sites(world, tmp_path)
    post = FakePost(sites)
    config = deployed(world, tmp_path, "strategy=fedavg", "sharing=personal_head")
    result = run(config, connect=connect_by(post))
    name = next(e.run for _, e in post.asked)
    heads = {  # what a site brings into a round that is yet to come, and into the last one
        (site, round): below(Journal(sites[site].folder / "done").state(name, round), "private")
        for site in ("large", "main")
        for round in (3, 4)
    }
    first = heads["large", 4]
    assert first
    for other in (heads["large", 3], heads["main", 4], heads["main", 3]):
        assert other.keys() == first.keys()
        assert all(not torch.equal(x, first[n]) for n, x in other.items())
    sent = [e.blobs["state"] for _, e in post.asked if "state" in e.blobs]
    assert sent and not any(n.encode() in blob for n in first for blob in sent)
    saved = safetensors.torch.load_file(result.folder / "checkpoint.safetensors")
    assert not any("/private/" in n for n in saved)


def test_a_site_predicts_with_what_it_keeps_to_itself(world, tmp_path, forefed_command):
    """By hand: the run's common parameters with the head in the site's own journal."""
    more = ["strategy=fedavg", "sharing=personal_head", "client.optimiser.lr=0.1", "rounds=2"]
    sites = make_sites(world, tmp_path)
    config = deployed(world, tmp_path, *more)
    folder = run(config, connect=connect_by(FakePost(sites))).folder
    place = sites["large"].folder
    about = sites["large"].settings.model_dump(mode="json", exclude_none=True)
    data, models = about["data"]["source"]["path"], about["models"]
    (place / "site.toml").write_text(
        f'name = "large"\nserver = "127.0.0.1:1"\n[data.source]\nkind = "files"\n'
        f"path = {json.dumps(data)}\n[models]\n"
        + "".join(f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in models.items())
    )
    (word,) = (path.name for path in (place / "done").iterdir())
    assert word == (folder / "run-id").read_text()
    kept = below(Journal(place / "done").state(word, 99), "private")
    own = of_site(folder, place)
    assert own.kept.keys() == kept.keys() and kept
    task, state = use.trained(folder, config)
    params = use.with_own(config, task, state.params, own.kept)
    assert all(torch.equal(params[n], x) for n, x in kept.items())
    assert any(not torch.equal(params[n], state.params[n]) for n in kept)
    said = forefed_command("predict", folder, "w5 w6", "--site", place)
    assert said.status == 0 and not said.err
    assert said.out != forefed_command("predict", folder, "w5 w6").out
    for wrong, words in (
        ([folder, "w5", "--client", "0"], "--site FOLDER"),
        ([folder, "w5", "--client", "0", "--site", place], "not as both"),
        ([folder, "w5", "--site", tmp_path], "no site here"),
    ):
        refused = forefed_command("predict", *wrong)
        assert refused.status == 2 and words in " ".join(refused.err.split())
