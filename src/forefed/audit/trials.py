"""Messages to be attacked, what their attacker has beside them, and the texts it guesses at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from forefed.audit import synthetic
from forefed.audit.reading import Reading
from forefed.audit.subject import Subject
from forefed.core.keys import Key
from forefed.core.types import Order, Params, Update
from forefed.data.examples import Examples

GUESSES = 12
"""Candidates of a guess: the client's own row, near copies of it (one word exchanged), others."""
NEAR = 5
MOST_GRADIENTS = 40_000_000
"""Numbers of auxiliary gradients that are held."""


@dataclass(frozen=True)
class Guess:
    """One candidate row, as an attacker thinks of it."""

    row: Examples
    right: bool


@dataclass(frozen=True)
class Trial:
    """One client's message and what is to be found out: ``rows`` are all of the client's, ``seen``
    those that the message is made of, ``target`` one of them by its place in ``rows``; ``others``
    are the clients that are in one sum with it."""

    order: Order
    rows: Examples
    seen: Examples
    target: int
    update: Update
    reading: Reading
    key: Key
    others: tuple[tuple[Order, Examples], ...] = ()


@dataclass(frozen=True)
class Auxiliary:
    """The attacker's own rows: their gradients by row and label, and the model's mean
    probabilities of the classes [C] on them."""

    gradients: tuple[tuple[Params, ...], ...] = ()
    chances: Tensor = field(default_factory=lambda: torch.zeros(0))

    @staticmethod
    def of(subject: Subject) -> Auxiliary:
        """Nothing, where rows have no classes."""
        if not subject.classes:
            return Auxiliary()
        params = subject.state.params
        size = sum(subject.task.params[n].numel() for n in subject.shared)
        some = subject.auxiliary[: max(2, MOST_GRADIENTS // max(1, size * subject.classes))]
        gradients = tuple(tuple(g for _, g in subject.by_label(subject.rows, int(i))) for i in some)
        with torch.no_grad():
            logits = subject.task.logits(
                {**subject.task.params, **params}, subject.rows.batch(some)
            )
        return Auxiliary(gradients, logits.double().softmax(1).mean(0).cpu())


def client_rows(subject: Subject, count: int, key: Key) -> Examples:
    """The rows of one client: synthetic ones with labels as unlike as clients' are."""
    rows = synthetic.taken(subject.rows, subject.drawn(count, key.fold("rows")))
    if subject.own or not subject.classes:
        return rows
    return synthetic.relabelled(rows, synthetic.skewed(count, subject.classes, key.fold("labels")))


def guesses_at(subject: Subject, rows: Examples, target: int, key: Key) -> list[Guess]:
    """The right row first; the attacker scores all alike."""
    right = synthetic.taken(rows, [target])
    near = [
        Guess(synthetic.near_copy(right, key.fold("near", i), subject.vocabulary), False)
        for i in range(NEAR)
    ]
    inside = {rows.tokens[a:b].tobytes() for a, b in _ends(rows)}
    far: list[Guess] = []
    for i in subject.drawn(len(subject.rows) - len(subject.auxiliary), key.fold("far")):
        if len(far) == GUESSES - NEAR - 1:
            break
        other = synthetic.taken(subject.rows, [int(i)])
        if other.tokens.tobytes() not in inside:
            far.append(Guess(other, False))
    return [Guess(right, True), *near, *far]


def first_alone(values: Sequence[float]) -> float:
    """1 where the first one, which is right, is the largest; a tie is as good as its draw."""
    top = max(values)
    ties = sum(v == top for v in values)
    return 1 / ties if values[0] == top else 0.0


def _ends(rows: Examples) -> Iterator[tuple[int, int]]:
    for i in range(len(rows)):
        yield int(rows.offsets[i]), int(rows.offsets[i + 1])
