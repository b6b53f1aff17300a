"""What Flower carries: envelopes as its messages, its errors as our losses."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from forefed.core.errors import ProtocolError
from forefed.deploy.envelope import VERSION, Envelope
from forefed.deploy.flower_client import SOCKET, app, left_s
from forefed.deploy.flower_post import GridPost
from forefed.deploy.flower_records import BLOBS, HEADER, SMALL, from_records, to_records
from forefed.deploy.parcels import Failure

QUESTION = Envelope("train", "run", 3, 1, "settings", {"state": bytes(100), "order": b"o"})


@pytest.fixture(autouse=True)
def process_of_a_task(monkeypatch):
    """What Flower tells its processes about themselves."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_an_envelope_survives_flowers_records():
    large = replace(QUESTION, blobs={"state": b"\x00" * (SMALL + 1), "order": b"o"})
    for envelope in (QUESTION, large, Envelope("join", "run", text="é")):
        assert from_records(to_records(envelope)) == envelope


def test_the_header_is_one_versioned_record_of_plain_values():
    header = to_records(QUESTION)[HEADER]
    assert header["version"] == VERSION
    assert all(isinstance(v, str | int | bytes) for v in header.values())


def test_small_blobs_are_three_objects_and_large_ones_are_kept_once():
    small = get_all_nested_objects(to_records(QUESTION))
    assert [type(x) for x in small.values()] == [ConfigRecord, RecordDict]  # and the message
    large = [replace(QUESTION, client=c, blobs={"state": b"s" * (SMALL + 1)}) for c in range(2)]
    first, second = (set(get_all_nested_objects(to_records(e))) for e in large)
    assert len(first & second) == 3  # the state, its array and its record of arrays


FOREIGN = {
    "nothing": RecordDict(),
    "other records": RecordDict({"arrays": ArrayRecord()}),
    "other kinds": RecordDict({HEADER: ArrayRecord(), BLOBS: ConfigRecord()}),
    "another version": RecordDict(
        {HEADER: ConfigRecord({**QUESTION.header(), "version": 1}), BLOBS: ArrayRecord()}
    ),
    "a blob of words": RecordDict({HEADER: ConfigRecord({**QUESTION.header(), "blob x": "words"})}),
    "blobs in two places": RecordDict(
        {
            HEADER: ConfigRecord({**QUESTION.header(), "blob x": b"1"}),
            BLOBS: ArrayRecord({"x": Array("bytes", (1,), "bytes", b"2")}),
        }
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_records_are_refused(what):
    with pytest.raises(ProtocolError):
        from_records(FOREIGN[what])


class FakeGrid:
    """Answers as Flower's Grid: by the id of the question; errors come from a wrong sender."""

    def __init__(self, answers):
        self.answers = answers
        self.pushed: list[Message] = []

    def get_nodes(self):
        return [SimpleNamespace(node_id=5, name="a"), SimpleNamespace(node_id=6, name="")]

    def push_messages(self, messages):
        self.pushed += messages
        return [f"id{i}" for i, _ in enumerate(messages)]

    def pull_messages(self, ids):
        return [message(self.answers[i], i) for i in ids if i in self.answers]


def message(content, reply_to: str) -> Message:
    about = Metadata(1, "m", 99, 1, reply_to, "", 0.0, 60.0, "train")
    kind = {"error": content} if isinstance(content, Error) else {"content": content}
    return make_message(metadata=about, **kind)


def test_questions_go_to_their_nodes_and_live_as_long_as_the_round():
    grid = FakeGrid({})
    assert GridPost(grid).nodes() == {5: "a", 6: ""}
    assert GridPost(grid).push([(5, QUESTION), (6, QUESTION)], 33.0) == ["id0", "id1"]
    assert [(m.metadata.dst_node_id, m.metadata.ttl) for m in grid.pushed] == [(5, 33.0), (6, 33.0)]
    assert from_records(grid.pushed[0].content) == QUESTION


REASONS = {
    1: "error",
    2: "error",
    3: "deadline",
    4: "deadline",
    5: "offline",
    7: "error",
    8: "crash",
}


def test_answers_are_known_by_their_question_and_errors_become_reasons():
    grid = FakeGrid({f"id{code}": Error(code, "said") for code in REASONS})
    grid.answers["id90"] = to_records(QUESTION)
    grid.answers["id91"] = RecordDict()
    found = {d.question: d.content for d in GridPost(grid).pull([*grid.answers, "id99"])}
    for code, reason in REASONS.items():
        assert found[f"id{code}"] == Failure(reason, f"{code}: said")
    assert found["id90"] == QUESTION
    assert found["id91"].reason == "transport" and "id99" not in found


def test_the_client_app_answers_whatever_happens(tmp_path):
    def answer(content, config):
        asked = Message(content, 5, "train")
        asked.metadata.__dict__.update(_message_id="m", _src_node_id=1)
        context = Context(1, 5, config, RecordDict(), {})
        return from_records(app(asked, context).content)

    here = {SOCKET: str(tmp_path / "worker.sock")}
    assert answer(to_records(QUESTION), {}).kind == "failed"
    assert answer(RecordDict(), here).kind == "failed"


@pytest.mark.parametrize(("age", "left"), [(0, 60), (50, 10), (500, 1), (-120, 60)])
def test_a_site_waits_no_longer_than_the_server(age, left):
    """Also when the message lay somewhere; -120: the site's clock is two minutes behind."""
    asked = Message(to_records(QUESTION), 5, "train", ttl=60.0)
    asked.metadata.created_at = time.time() - age
    assert left_s(asked) == pytest.approx(left, abs=0.5)
