"""Sums that lie: left out where they are seen, bounded where they are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from federation import World
from forefed.config.compat import conflicts
from forefed.config.config import configure
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Key
from forefed.core.types import Transport
from forefed.models.bag_of_words import occurrences
from forefed.run import start_questions
from forefed.run.build import build, start_at
from forefed.run.head_start import begin, finish
from forefed.run.start_result import load_begun
from forefed.start import ClosedForm, start_of
from forefed.start.contradicting import Means, contradicting, judged
from forefed.start.sums import Sums, pack
from forefed.start.sums import unpack as unpack_sums
from forefed.start.targets import Classes, Labels, Numbers, Targets
from forefed.start.word_scores import (
    by_target,
    check_products,
    check_words,
    documents_of,
    kept,
    products,
)
from forefed.use.forget import forget
from forefed.wire.message import unpack, unpack_tensors
from forefed.wire.questions import encode_answer

CLASSES = Classes(("a", "b", "c"))


def rows(n: int, key: int, only: int | None = None) -> tuple[Tensor, Tensor]:
    """Three classes around centres of length 2, or one of them."""
    labels = torch.arange(n) % 3 if only is None else torch.full((n,), only)
    centres = 2.0 * torch.eye(3, 8)
    return centres[labels] + 0.7 * Key(key).normal((n, 8)), labels


def sums(x: Tensor, labels: Tensor) -> Sums:
    return Sums.of(x, CLASSES.of(labels.numpy()))


def times(many: int, s: Sums) -> Sums:
    return Sums(*(many * part for part in vars(s).values()))


LIES = {
    "flipped": lambda x, y: sums(x, (y + 1) % 3),
    "flipped and ten times as many": lambda x, y: times(10, sums(x, (y + 1) % 3)),
    "one class for all": lambda x, y: sums(x, 0 * y),
    "mirrored": lambda x, y: sums(2 * x.mean(0) - x, y),
    "long": lambda x, y: sums(3 * x, y),
}


@pytest.mark.parametrize("lie", LIES)
def test_liars_are_found_and_nobody_else(lie: str) -> None:
    """Three of thirteen, all with one lie; of the honest one has one class, and one few rows."""
    each = {i: LIES[lie](*rows(60, i)) for i in (0, 5, 9)}
    each |= {i: sums(*rows(60, i)) for i in range(11) if i not in each}
    each |= {11: sums(*rows(50, 11, only=2)), 12: sums(*rows(6, 12))}
    assert contradicting(list(each), each.__getitem__, CLASSES, 4) == (0, 5, 9)
    assert len(contradicting(list(each), each.__getitem__, CLASSES, 2)) == 2  # never more
    assert contradicting(list(each), each.__getitem__, CLASSES, 0) == ()


def test_many_rows_and_rare_classes_are_no_lie() -> None:
    each = {i: sums(*rows(60, i)) for i in range(6)}
    each[6] = times(10, each[0])
    x, y = rows(60, 7)
    each[7] = Sums.of(x, Classes(("a", "b", "c")).of(y.numpy()))
    assert contradicting(list(each), each.__getitem__, CLASSES, 3) == ()


def test_a_hopeless_task_accuses_nobody() -> None:
    each = {i: sums(Key(i).normal((40, 8)), torch.arange(40) % 3) for i in range(12)}
    assert contradicting(list(each), each.__getitem__, CLASSES, 4) == ()


@pytest.mark.parametrize("targets", [CLASSES, Labels(("a", "b", "c")), Numbers(("0.0", "1.0"))])
def test_the_judgement_is_that_of_the_rows(targets: Targets) -> None:
    """Agreement, length and size from sums alone equal those of each row."""
    x, labels = rows(30, 1)
    other, theirs = rows(90, 2)

    def told(labels: Tensor) -> Tensor:
        if isinstance(targets, Numbers):
            return (labels[:, None] - 1) * 2**16
        return CLASSES.of(labels.numpy())

    own, others = Sums.of(x, told(labels)), Means.of(Sums.of(other, told(theirs)))
    w_CD = others.ridge()
    found = judged(Means.of(own), 30, others, w_CD, targets)
    x_ND = (x.double() * 256).round() / 256
    predicted = (x_ND - others.x_D) @ w_CD.T
    centre = 0 if targets.named else others.y_C
    assert found.agreement == pytest.approx(
        float((predicted * (told(labels).double() - centre)).sum() / 30), rel=1e-9
    )
    assert found.length == pytest.approx(float((x_ND**2).sum() / 30), rel=1e-9)
    assert found.size == pytest.approx(float((predicted**2).sum() / 30), rel=1e-9)


@pytest.mark.parametrize("targets", [CLASSES, Labels(("a", "b", "c")), Numbers(("0.0", "1.0"))])
def test_words_of_rows_pass_and_those_of_more_rows_do_not(targets: Targets) -> None:
    row_T, id_T = torch.arange(40).repeat_interleave(6), Key(1).permutation(240) % 50
    documents = documents_of(*occurrences(row_T, torch.from_numpy(id_T))[:2])[:, 0]
    bag = kept(documents, 40, 100)
    entries = bag.entries(row_T, torch.from_numpy(id_T))
    y = torch.eye(3)[torch.arange(40) % 3] if targets.named else targets.of(np.arange(40) / 40)
    told = by_target(entries, y, len(bag))
    check_words(told, 40, targets)
    with pytest.raises(ProtocolError, match="words"):
        check_words(told, 4, targets)
    with pytest.raises(ProtocolError, match="words"):
        check_words(torch.cat([told[:, :-1] * 2**40, told[:, -1:]], 1), 40, targets)
    p = torch.from_numpy(Key(2).permutation(len(bag) * 2).reshape(-1, 2) - len(bag)) / len(bag)
    images = products(entries, 40, p)
    check_products(images, p, 40)
    for lie in (-images, 100 * images):
        with pytest.raises(ProtocolError, match="products"):
            check_products(lie, p, 40)


def test_bounds_are_kept_by_clients_and_looked_at_by_the_server() -> None:
    x, y = rows(20, 1)
    bounded = ClosedForm(max_rows=20)
    bounded.check(sums(x, y), 1)
    bounded.check(times(3, sums(x, y)), 3)
    with pytest.raises(ProtocolError, match="sums of 200 rows, at most 20"):
        bounded.check(times(10, sums(x, y)), 1)
    cut = ClosedForm(noise_multiplier=1.0, radius=0.5)
    with pytest.raises(ProtocolError, match=r"features longer than 0\.5"):
        cut.check(sums(x, y), 1)


class Longer:
    """Clients of whom the third claims features that are four times as long as they are."""

    def __init__(self, inside: Any):
        self.inside, self.asked = inside, Counter[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def tell(self, messages: Any, *how: Any) -> Iterator[Any]:
        self.asked.update(list(messages))
        for outcome in self.inside.tell(messages, *how):
            meta, body = unpack(outcome.payload, "answer")
            if outcome.client == 2 and meta["k"] == "sums":
                told = Sums.unpacked(unpack_tensors(body), 3, 48)
                lie = replace(told, x=4 * told.x, xy=4 * told.xy, xx=16 * told.xx).packed()
                outcome = replace(outcome, payload=encode_answer(meta["k"], meta["of"], lie))
            yield outcome


def test_a_start_goes_on_without_a_liar_and_says_so(world: World, tmp_path: Path) -> None:
    sets = ["start=closed_form", "model.pooling=mean", "start.f=1", "start.solver=ridge"]
    federation = build(world.config(tmp_path, "strategy=fedavg", *sets))
    start = start_at(federation.config, federation.task)
    assert start is not None
    longer = Longer(federation.transport)
    liar = cast(Transport, longer)
    begun = begin(start, federation.task, liar, None)
    assert begun.line["left_out"] == [2] and begun.line["clients"] == 5 and not begun.line["lost"]
    assert any("without a client whose sums contradict the others' (2)" in n for n in begun.notes)
    ended = finish(begun, start, federation.task, liar, None)
    assert ended.finished and longer.asked == Counter([0, 1, 3, 4, 5] * 3 + [2])
    # the sums as if it had never been asked; what is chosen by votes is a trimmed mean
    away = dict.fromkeys(c for c in federation.transport.members() if c != 2)
    others = cast(Transport, Only(federation.transport, list(away)))
    alone = begin(start.model_copy(update={"f": 0}), federation.task, others, None)
    assert all(torch.equal(getattr(begun.total, n), x) for n, x in vars(alone.total).items())


class Wordy:
    """Clients of whom the third tells of words what no rows have, and nothing else."""

    def __init__(self, inside: Any, kind: str, times: int):
        self.inside, self.kind, self.times = inside, kind, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def tell(self, messages: Any, *how: Any) -> Iterator[Any]:
        for outcome in self.inside.tell(messages, *how):
            meta, body = unpack(outcome.payload, "answer")
            if outcome.client == 2 and meta["k"] == self.kind:
                told = unpack_tensors(body)
                at, packed = told[f"{self.kind}/at"], told[f"{self.kind}/values"]
                values = unpack_sums(packed, torch.zeros(len(packed)), "it")
                lie = {f"{self.kind}/at": at, f"{self.kind}/values": pack(self.times * values)}
                outcome = replace(outcome, payload=encode_answer(meta["k"], meta["of"], lie))
            yield outcome


@pytest.mark.parametrize(
    ("kind", "times"), [("words", 1000), ("words", -1), ("products", 10**6), ("products", -1)]
)
def test_words_that_no_rows_have_leave_their_client_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, times: int
) -> None:
    monkeypatch.setattr(start_questions, "contradicting", lambda *them: ())  # features are honest
    sets = ["start=closed_form", "model.pooling=mean", "start.f=1", "start.solver=ridge"]
    federation = build(world.config(tmp_path, "strategy=fedavg", *sets))
    start, words = start_at(federation.config, federation.task), 500
    assert start is not None
    liar = cast(Transport, Wordy(federation.transport, kind, times))
    begun = begin(start, federation.task, liar, None, words)
    assert begun.line["left_out"] == [2] and begun.line["clients"] == 5
    away = [c for c in federation.transport.members() if c != 2]
    others = cast(Transport, Only(federation.transport, away))
    alone = begin(start, federation.task, others, None, words)
    assert all(torch.equal(getattr(begun.total, n), x) for n, x in vars(alone.total).items())
    # who believes everybody ends with other words, or with none
    believing = begin(start.model_copy(update={"f": 0}), federation.task, liar, None, words)
    assert believing.line["clients"] == 6


class Only:
    """Some of the clients."""

    def __init__(self, inside: Any, clients: list[int]):
        self.inside, self.clients = inside, clients

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def members(self) -> list[int]:
        return self.clients


def test_a_run_keeps_its_bound_and_forgets_what_was_in_its_sums(
    world: World, tmp_path: Path
) -> None:
    sets = ["strategy=fedavg", "start=closed_form", "model.pooling=mean", "rounds=0"]
    sets += ["adapter=head", "start.then=trained", "start.words=0", "start.max_rows=5"]
    folder = world.run(tmp_path, *sets).folder
    begun = load_begun(folder)
    assert begun is not None and begun.finished and begun.line["examples"] <= 10 * 6
    gone = forget(folder, 3)
    assert 0 < gone.total.rows < begun.total.rows
    replace(gone, line={**gone.line, "left_out": [5]}).save(folder)
    with pytest.raises(UserError, match="the sums of client 5 were left out"):
        forget(folder, 5)


def test_who_lies_is_assumed_as_for_the_rounds_and_only_where_sums_are_seen() -> None:
    def f(*sets: str) -> object:
        config = configure(sets=["strategy=fedavg", *sets])
        start = start_of(config, "mean")
        return start and start.f

    robust = "aggregator={kind='dnc', f=0.25}"
    assert f() == 0 and f("aggregator=median") == 0
    assert f(robust) == 0.25 and f(robust, "start.kind=closed_form", "start.f=2") == 2
    hidden = configure(
        sets=["strategy=fedavg", "channel=secure_sum", "start={kind='closed_form', f=1}"]
    )
    (said,) = [c for c in conflicts(hidden) if "start.f" in c]
    assert "shows none" in said
