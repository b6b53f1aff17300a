"""Runs over a post: the same bits as a rehearsal, and exactly one outcome for every order."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch

from deployment import (
    NAMES,
    STRATEGIES,
    FakePost,
    deployed,
    failing,
    make_sites,
    orders_for,
    rehearsal,
    remote,
    trained_by,
)
from faults import fault
from federation import Interrupted, StopAfter, lines
from forefed.core import trees
from forefed.core.types import Lost, Reply
from forefed.deploy.connect import connect_by
from forefed.deploy.envelope import Envelope
from forefed.deploy.parcels import Failure
from forefed.federation.inprocess import SURPLUS, InProcess
from forefed.federation.topology import Buffered
from forefed.local.party import Party
from forefed.run import run
from toy import toy_clients


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_sites_end_with_the_bits_of_the_rehearsal(world, tmp_path, strategy):
    more = STRATEGIES[strategy]
    alone = run(rehearsal(world, tmp_path / "a", *more))
    sites = make_sites(world, tmp_path / "b")
    said: list[str] = []
    connect = connect_by(FakePost(sites), said.append)
    together = run(deployed(world, tmp_path / "b", *more), connect=connect)
    assert together.summary["digest"] == alone.summary["digest"]
    assert together.summary["final"] == alone.summary["final"]
    ours, theirs = lines(together.folder, "rounds.jsonl"), lines(alone.folder, "rounds.jsonl")
    assert [r["loss"] for r in ours] == [r["loss"] for r in theirs]
    assert sorted(said) == sorted(f"{n} takes part" for n in NAMES)


FAULTS = {
    "a question": (lambda a: [replace(a, kind="train")], "transport"),
    "no update": (lambda a: [replace(a, blobs={})], "transport"),
    "one blob more": (lambda a: [replace(a, blobs={**a.blobs, "x": b""})], "transport"),
    "failed": (lambda a: [replace(a, kind="failed", blobs={}, text="OSError")], "error"),
    "refused": (lambda a: [replace(a, kind="refused", blobs={}, text="no")], "error"),
    "crash": (failing("crash"), "crash"),
    "offline": (failing("offline"), "offline"),
    "expired": (failing("deadline"), "deadline"),
    "silent": (lambda a: [], "deadline"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_none_is_one_loss_and_the_round_goes_on(fault):
    tamper, reason = FAULTS[fault]
    loop, _ = remote(tamper={"b": tamper}, deadline_s=0.1)
    state, report = loop.round(orders_for(loop))
    assert [lost.client for lost in report.lost] == [1]
    assert report.lost[0].reason == reason
    assert sorted(u.client for u in report.updates) == [0, 2]
    assert state.round == 1


def test_an_oversized_answer_is_refused_before_it_is_read():
    large = {"update": bytes(1 << 27)}
    loop, _ = remote(tamper={"b": lambda a: [replace(a, blobs=large)]})
    _, report = loop.round(orders_for(loop))
    assert [lost.detail for lost in report.lost if "bytes; at most" in lost.detail]


def test_a_question_that_cannot_be_sent_is_a_loss():
    loop, post = remote()
    post.unsendable = {"c"}
    _, report = loop.round(orders_for(loop))
    assert [(lost.client, lost.reason, lost.bytes_down) for lost in report.lost] == [
        (2, "transport", 0)
    ]


def test_bytes_are_those_of_the_letters():
    loop, post = remote()
    _, report = loop.round(orders_for(loop))
    sent = [e for _, e in post.asked if e.kind == "train"]
    assert (
        report.bytes_down
        == sum(e.size for e in sent)
        > 3 * sum(x.nbytes for x in orders_for(loop).params.values())
    )


@fault("answer: after the cohort's last", "oversampling > 0", "dropped, counted under 'deadline'")
def test_over_selection_takes_the_first_answers_and_counts_the_late_ones():
    loop, _ = remote(cohort=2, oversampling=0.5)
    _, report = loop.round(orders_for(loop))
    assert len(report.cohort) == 3 and len(report.updates) == 2
    assert [(lost.reason, lost.detail) for lost in report.lost] == [("deadline", SURPLUS)]
    assert report.lost[0].bytes_down > 0


def test_over_selection_makes_up_for_a_loss():
    loop, _ = remote(cohort=2, oversampling=0.5, tamper={"a": failing("crash")})
    _, report = loop.round(orders_for(loop))
    assert sorted(u.client for u in report.updates) == [1, 2]
    assert [lost.reason for lost in report.lost] == ["crash"]


@fault("server: the run stopped between two answers", "round 2 of 3", "--resume: same bits")
@pytest.mark.parametrize("strategy", ["fedavg", "spry-scalars"])
def test_a_run_that_goes_on_after_a_stop_ends_with_the_same_bits(world, tmp_path, strategy):
    more = [
        *STRATEGIES[strategy],
        *(["client.keep_optimiser=true"] if strategy == "fedavg" else []),
    ]
    whole = run(rehearsal(world, tmp_path / "a", *more))
    connect = connect_by(FakePost(make_sites(world, tmp_path / "b")))
    config = deployed(world, tmp_path / "b", *more)
    with pytest.raises(Interrupted):  # in round 2, when two sites have done their work
        run(config, connect=connect, watcher=StopAfter(1, 2))
    again = connect_by(FakePost(make_sites(world, tmp_path / "b")))  # nobody remembers but on disk
    assert run(config, resume=True, connect=again).summary["digest"] == whole.summary["digest"]


def rehearsed(**slots):
    """The same three clients and three more in this process."""
    loop, post = remote(**slots)
    clients, trainer = toy_clients(), post.sites["a"].trainer
    transport = InProcess(len(clients), clients.__getitem__, trainer, Party(lambda _: trainer))
    return replace(loop, transport=transport)


def test_a_rehearsal_oversamplings_too_and_nobody_is_always_late():
    loop = rehearsed(cohort=2, oversampling=1.0)
    state, late = orders_for(loop), Counter()
    for _ in range(40):
        state, report = loop.round(state)
        assert len(report.cohort) == 4 and len(report.updates) == len(report.lost) == 2
        assert {lost.detail for lost in report.lost} == {SURPLUS}
        assert report.bytes_down == 2 * sum(lost.bytes_down for lost in report.lost)
        late.update(lost.client for lost in report.lost)
    assert all(5 <= late[c] <= 25 for c in range(6))  # 40 * 4/6 * 1/2 = 13 of each


def test_a_rehearsal_abandons_a_round_with_too_few_answers():
    loop = rehearsed(cohort=6, cohort_min=6)
    lossy = replace(loop, transport=replace(loop.transport, faults={"crash": 0.3}))
    start = orders_for(loop)
    after, report = lossy.round(start)
    assert report.abandoned == 6 - len(report.lost) > 0
    assert after.round == 1 and trees.digest(after.params) == trees.digest(start.params)
    whole, report = loop.round(start)
    assert not report.abandoned and trees.digest(whole.params) != trees.digest(start.params)


@fault("fewer answers than cohort_min", "one round", "abandoned: it changes nothing; counted")
def test_a_round_with_too_few_answers_changes_nothing():
    loop, post = remote(cohort_min=2, tamper={n: failing("crash") for n in "ab"})
    start = orders_for(loop)
    state, report = loop.round(start)
    assert (report.abandoned, len(report.updates), len(report.lost)) == (1, 0, 2)
    assert state.round == 1 and trees.digest(state.params) == trees.digest(start.params)
    post.tamper.clear()
    state, report = loop.round(state)
    assert report.abandoned == 0 and len(report.updates) == 3
    assert trees.digest(state.params) != trees.digest(start.params)


def test_members_come_and_go():
    loop, post = remote()
    members = loop.transport.members
    post.offline = {"b"}
    assert members() == [0, 2]
    post.offline = {"a"}
    assert members() == [1, 2]


@fault("every site gone", "before a round", "the run waits until one is back, and says so")
def test_without_any_site_a_run_waits():
    said: list[str] = []

    def come_back(text: str) -> None:
        said.append(text)
        post.offline = {"a", "b"}

    loop, post = remote(say=come_back)
    post.offline = {"a", "b", "c"}
    state, report = loop.round(orders_for(loop))
    assert said[0] == "no site takes part; waiting for one"
    assert report.cohort == (2,) and len(report.updates) == 1 and state.round == 1


STRANGERS = {
    "not on the list": ({"site": "z"}, "partition.names"),
    "another's name": ({"site": "a"}, "registered as 'b'"),
    "other weights": ({"weights": "0"}, "other weights under the model's name"),
    "another tokeniser": ({"tokenizer": "0"}, "another tokeniser under the model's name"),
    "another tokeniser in another format": ({"tokenizer": "0", "dtype": "int8"}, "another token"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_who_does_not_take_part(stranger):
    about, why = STRANGERS[stranger]
    said: list[str] = []
    registered = about != {"site": "z"}
    loop, _ = remote(about={"b": about}, say=said.append, registered=registered)
    assert loop.transport.members() == [0, 2]
    assert [text for text in said if why in text and "does not take part" in text]


EVIL = "\x1b[2J\x1b]0;title\x07[bold red]\u202e\r\n" + "x" * 1000


def test_a_sites_text_moves_no_cursor_and_is_cut():
    said: list[str] = []
    loop, post = remote(about={"b": {"site": EVIL}}, registered=False, say=said.append)
    post.tamper = {"c": lambda a: [replace(a, kind="failed", blobs={}, text=EVIL)]}
    _, report = loop.round(orders_for(loop))
    heard = [*said, *(lost.detail for lost in report.lost)]
    assert sum("[bold red]" in text for text in heard) == 2
    assert all(text.isprintable() and len(text) < 400 for text in heard)


def test_nobody_takes_the_place_of_a_site_that_is_there():
    said: list[str] = []
    loop, _ = remote(about={"b": {"site": "a"}}, registered=False, say=said.append)
    assert loop.transport.members() == [0, 2]
    assert [text for text in said if "joined from another node" in text]


def test_a_site_that_is_turned_away_is_asked_once_a_round():
    loop, post = remote(about={"b": {"site": "z"}}, join_s=0.3)
    loop.transport.members()
    loop.transport.members()
    assert [name for name, e in post.asked if e.kind == "join"].count("b") == 2


def test_answers_of_any_kind_give_exactly_one_outcome_per_order():
    loop, post = remote()
    loop.transport.members()
    orders = list(loop.plan(orders_for(loop)).values())
    post.tamper = {
        "a": lambda a: [Failure("error", "x" * 1000), a],
        "b": lambda a: [a, replace(a, round=9), Failure("crash", "")],
    }
    outcomes = list(loop.transport.exchange(orders, 0.1))
    assert sorted(o.client for o in outcomes) == [0, 1, 2]
    lost = [o for o in outcomes if isinstance(o, Lost)]
    assert sum(isinstance(o, Reply) for o in outcomes) == 2 and len(lost[0].detail) <= 300


def test_the_reply_is_what_the_site_has_sent():
    loop, post = remote()
    loop.transport.members()
    order = next(iter(loop.plan(orders_for(loop)).values()))
    (reply,) = loop.transport.exchange([order], 1.0)
    answer: Envelope = trained_by(post, "a")
    assert isinstance(reply, Reply) and reply.payload == answer.blobs["update"]


@dataclass
class Patient(FakePost):
    """Answers are there after so many questions about them: at once, or by ``slow`` a site's own
    number; nobody answers before anybody was asked."""

    slow: dict[str, int] = field(default_factory=dict)
    pulls: dict[str, int] = field(default_factory=dict)

    def pull(self, questions):
        for q in questions:
            self.pulls[q] = self.pulls.get(q, 0) + 1
        names = {q: self.asked[int(q[1:]) - 1] for q in questions}
        due = [
            q
            for q, (name, e) in names.items()
            if e.kind != "train" or self.pulls[q] > self.slow.get(name, 0)
        ]
        return super().pull(due)


def buffered(buffer=1, slow=None, **slots):
    loop, post = remote(topology=Buffered(buffer=buffer), **slots)
    patient = Patient(post.sites, slow=slow or {})
    loop.transport.post = patient
    return loop, patient


def test_waiting_for_every_site_is_a_round_of_fedavg():
    plain, _ = remote()
    waiting, _ = buffered(buffer=3)
    states = [orders_for(plain), orders_for(waiting)]
    for _ in range(2):
        states = [loop.round(s)[0] for loop, s in zip((plain, waiting), states, strict=True)]
    assert trees.digest(states[0].params) == trees.digest(states[1].params)


def test_a_stragglers_answer_to_an_older_order_counts_less_and_is_used():
    """Site c is asked once. Its answer comes after the two that the third move is made of, and is
    the first of the fourth: three moves old, (1 + 3)^-1/2 of what it sent."""
    loop, post = buffered(buffer=2, slow={"c": 2})
    state, reports = orders_for(loop), []
    for _ in range(4):
        state, report = loop.round(state)
        reports.append(report)
    assert [r.heard for r in reports[:3]] == [(0, 1)] * 3
    assert [r.metrics["at_work"] for r in reports] == [1, 1, 1, 1]
    assert 2 in reports[3].heard and reports[3].metrics["age"] == pytest.approx(1.5)
    asked = [e for name, e in post.asked if name == "c" and e.kind == "train"]
    assert [e.round for e in asked] == [1] and not reports[3].lost
    sent = post.sites["c"].answers[0].blobs["update"]
    own = loop.server.receive(
        replace(next(iter(loop.plan(orders_for(loop)).values())), client=2), sent
    )
    used = next(u for u in reports[3].updates if u.client == 2)
    for name, x in used.grad.items():
        torch.testing.assert_close(x, own.grad[name] / 2)


def test_an_order_that_ends_is_lost_and_its_site_is_asked_anew():
    loop, post = buffered(buffer=2, slow={"c": 10**6}, deadline_s=0.02)
    state, lost = orders_for(loop), []
    for _ in range(6):
        state, report = loop.round(state)
        assert len(report.updates) == 2 or report.lost
        lost += [x.client for x in report.lost]
        time.sleep(0.01)
    asked = [e.round for name, e in post.asked if name == "c" and e.kind == "train"]
    assert lost and set(lost) == {2} and len(asked) >= 2


@fault("server: stopped while a site works", "topology = 'buffered'", "--resume: its answer counts")
def test_orders_on_their_way_survive_a_stop(world, tmp_path):
    """The second server knows of them by its checkpoint alone, the site has done its work once."""
    more = ["strategy=fedbuff", "topology.buffer=2", "rounds=4", "client.keep_optimiser=true"]
    digests = []
    for place, stops in (("a", False), ("b", True)):
        sites = make_sites(world, tmp_path / place)
        config = deployed(world, tmp_path / place, *more)
        post = Patient(sites, slow={"large": 2})
        if stops:
            with pytest.raises(Interrupted):
                run(config, connect=connect_by(post), watcher=StopAfter(1, 2))
            done = [e.round for name, e in post.asked if name == "large" and e.kind == "train"]
            # nobody remembers but on disk; the question about the old order begins anew
            post = Patient(sites, slow={"large": 1})
            result = run(config, resume=True, connect=connect_by(post))
            again = [e.round for name, e in post.asked if name == "large" and e.kind == "train"]
            assert done == [1] and again[0] == 1
        else:
            result = run(config, connect=connect_by(post))
        ages = [line["metrics"]["age"] for line in lines(result.folder, "rounds.jsonl")]
        assert max(ages) > 0
        digests.append(result.summary["digest"])
    assert digests[0] == digests[1]
