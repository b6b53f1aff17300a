"""Questions about clients' own rows: the start's sums, losses on held-out rows.

ask        every answer by itself, as it comes
ask_sum    the sum of whole numbers, and nothing of a single answer (a secure sum)
ask_total  the sum of losses, in the way that the channel has
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from forefed.channel import SecureSum
from forefed.channel.words import Words
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.types import Lost, Params, Transport, drawn_from
from forefed.federation.summed import Summation
from forefed.local.summed import UNIT, Shapes
from forefed.wire.questions import decode_answer, encode_question

if TYPE_CHECKING:
    from forefed.federation.star import Star


@dataclass(frozen=True)
class Question:
    """What is asked of whom.

    Attributes:
        kind: of question (start/answer.py).
        about: digest of model and pooling; whoever has others does not answer.
        deadline_s: answers that take longer are lost; None: no limit.
    """

    kind: str
    about: str
    tensors: Params
    round: int
    clients: Sequence[int]
    deadline_s: float | None

    def encoded(self) -> bytes:
        return encode_question(self.kind, self.about, self.tensors)


@dataclass(frozen=True)
class Heard:
    """Who answered a question, and what it cost."""

    clients: tuple[int, ...]
    lost: dict[str, int]
    bytes_up: int
    bytes_down: int
    reason: str = ""
    """Why there is no sum."""


@dataclass(frozen=True)
class Hidden:
    """How answers are added up out of the server's sight. ``secret``: the server's."""

    channel: SecureSum
    secret: Secret

    @staticmethod
    def of(star: Star) -> Hidden | None:
        """For the questions of a federation; None: answers come by themselves."""
        if not isinstance(star.channel, SecureSum):
            return None
        return Hidden(star.channel, drawn_from(star.server.secret))

    def anew(self, *place: str | int) -> Hidden:
        """For one more sum, as no two questions may share masks."""
        return replace(self, secret=self.secret.fold(*place))


def ask(transport: Transport, question: Question, take: Callable[[int, Params], None]) -> Heard:
    """Put a question to clients.

    Args:
        take: given every client's answer as it comes; one that it refuses (ProtocolError) is one
            loss, by its reason, as is one that cannot be read.
    """
    heard: list[int] = []
    lost: dict[str, int] = {}
    up = down = 0
    for outcome in transport.ask(
        question.encoded(), question.round, question.clients, question.deadline_s
    ):
        down += outcome.bytes_down
        if isinstance(outcome, Lost):
            lost[outcome.reason] = lost.get(outcome.reason, 0) + 1
            continue
        up += outcome.bytes_up
        try:
            take(outcome.client, decode_answer(outcome.payload, question.kind, question.about))
            heard.append(outcome.client)
        except ProtocolError:
            lost["transport"] = lost.get("transport", 0) + 1
    return Heard(tuple(sorted(heard)), lost, up, down)


def ask_sum(
    transport: Transport, question: Question, hidden: Hidden, shapes: Shapes
) -> tuple[Heard, dict[str, torch.Tensor]]:
    """Put a question to clients and learn the sum of their answers, int64, in the units that
    ``start/answer.py`` gives to this question; nothing of a single one.

    Args:
        shapes: of the answer's tensors.

    Returns:
        Who is in the sum, and the sum; no tensors where it was abandoned.
    """
    channel, round = hidden.channel, question.round
    secret = hidden.secret.fold("ask", question.kind, round)
    sums = Summation(channel, transport, round, question.deadline_s, secret)
    ordered = dict(sorted(shapes.items()))
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in ordered.values()]
    sums.add(question.clients, Words.zero(0, sum(sizes), channel.bits))
    encoded = question.encoded()
    lost = dict[str, int]()
    work = {c: encoded + message for c, message in sums.prepare().items()}
    outcomes: list[Lost] = list(sums.lost)
    for outcome in transport.tell(work, round, question.deadline_s) if work else ():
        sums.bytes_down += outcome.bytes_down
        if isinstance(outcome, Lost):
            outcomes.append(outcome)
            continue
        sums.bytes_up += outcome.bytes_up
        try:
            sums.take(outcome.client, outcome.payload)
        except ProtocolError as error:
            outcomes.append(Lost(round, outcome.client, "transport", str(error)))
    opened = sums.finish()
    for one in outcomes:
        lost[one.reason] = lost.get(one.reason, 0) + 1
    total: dict[str, torch.Tensor] = {}
    if opened:
        flat = torch.from_numpy(opened[0].about.view(np.int64).copy())
        parts = flat.split(sizes)
        total = {n: x.reshape(s) for (n, s), x in zip(ordered.items(), parts, strict=True)}
    there, reason = sums.in_sum(opened), sums.abandoned.get(0, "")
    return Heard(there, lost, sums.bytes_up, sums.bytes_down, reason), total


def ask_total(
    transport: Transport,
    question: Question,
    shapes: Shapes,
    hidden: Hidden | None = None,
    on_answer: Callable[[int], None] = lambda heard: None,
) -> tuple[Heard, Params]:
    """Put a question to clients whose losses matter as their sum only.

    Args:
        shapes: of the answer's tensors; one that has others is a loss.
        hidden: the server sees nothing but the sum (None: every answer).
        on_answer: told how many have answered, where answers come by themselves.

    Returns:
        Who answered, and the sum, float64; no tensors where nobody did.
    """
    if hidden is not None:
        heard, whole = ask_sum(transport, question, hidden, shapes)
        return heard, real(whole)
    answers: dict[int, Params] = {}

    def take(client: int, answer: Params) -> None:
        if {n: tuple(x.shape) for n, x in answer.items()} != shapes:
            raise ProtocolError("other losses than were asked for")
        answers[client] = answer
        on_answer(len(answers))

    heard = ask(transport, question, take)
    names = shapes if answers else ()
    total = {n: torch.stack([answers[c][n].double() for c in heard.clients]).sum(0) for n in names}
    return heard, total


def real(total: Mapping[str, torch.Tensor]) -> Params:
    """Sums that are no whole numbers, float64."""
    return {n: x.double() * UNIT for n, x in total.items()}
