"""Questions about clients' own rows: the start's sums, losses on held-out rows.

ask        through the run's channel: every answer as it comes, or their sum and nothing else
ask_total  for answers of which only the sum matters, in either case
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from forefed.channel import Channel, Plain
from forefed.channel.channel import Group, Shapes, Sum, Work
from forefed.channel.summands import UNIT
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.types import Lost, Params, Reply, Transport
from forefed.federation.exchange import exchange
from forefed.federation.votes import check, trimmed_of, trimmed_total
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
    """Who answered a question, and what it cost. ``totals``: of whole numbers (int64), by group,
    where the channel adds answers up (no entries: it does not; None: there is no sum)."""

    clients: tuple[int, ...]
    lost: dict[str, int]
    bytes_up: int
    bytes_down: int
    totals: Sequence[Params | None] = ()
    reason: str = ""
    """Why there is no sum."""
    why: str = ""
    """What the first of those that were lost said of it, as far as it tells others."""


@dataclass(frozen=True)
class Way:
    """How answers come to the server. ``own``: its secret."""

    channel: Channel = field(default_factory=Plain)
    own: Secret | None = None

    @staticmethod
    def of(star: Star) -> Way:
        """For the questions of a federation."""
        return Way(star.channel, star.server.secret)

    def anew(self, *place: str | int) -> Way:
        """For one more question, as no two sums may share masks."""
        return self if self.own is None else replace(self, own=self.own.fold(*place))


PLAIN = Way()


def ask(
    transport: Transport,
    question: Question,
    take: Callable[[int, Params], None],
    shapes: Shapes,
    way: Way = PLAIN,
    groups: Sequence[Sequence[int]] = (),
) -> Heard:
    """Put a question to clients.

    Args:
        take: given every client's answer as it comes, where the channel shows it; one that it
            refuses (ProtocolError) is one loss, by its reason, as is one that cannot be read.
        shapes: of the answer's whole numbers, in the units that ``start/answer.py`` gives to this
            question, where the channel adds them up...
        groups: ... of each of these; none: of all who are asked.
    """
    encoded, groups = question.encoded(), groups or [question.clients]
    group_of = {c: i for i, some in enumerate(groups) for c in some}
    totals: list[Params | None] = [None] * len(groups)

    def read(client: int, payload: bytes) -> Params:
        take(client, decode_answer(payload, question.kind, question.about))
        return {}

    def of_sum(total: Sum) -> Params:
        totals[group_of[total.asked[0]]] = total.tensors
        return total.tensors

    def send(beside: Mapping[int, bytes], enough: Callable[[], bool]) -> Iterator[Reply | Lost]:
        messages = {c: encoded + more if more else encoded for c, more in beside.items()}
        return transport.tell(messages, question.round, question.deadline_s)

    work = Work(
        groups=[Group(tuple(some), dict(sorted(shapes.items()))) for some in groups],
        payload="whole",
        read=read,
        of_sum=of_sum,
        own=way.own and way.own.fold("ask", question.kind, question.round),
    )
    came = exchange(way.channel, work, transport, send, question.round, question.deadline_s)
    lost: dict[str, int] = {}
    for one in came.lost:
        lost[one.reason] = lost.get(one.reason, 0) + 1
    found = totals if came.summed else ()
    why = next((one.detail for one in came.lost if one.detail), "")
    return Heard(came.heard, lost, came.bytes_up, came.bytes_down, found, came.reason, why)


def ask_total(
    transport: Transport,
    question: Question,
    shapes: Shapes,
    way: Way = PLAIN,
    on_answer: Callable[[int], None] = lambda heard: None,
    hostile: tuple[int, int] | None = None,
) -> tuple[Heard, Params]:
    """Put a question to clients whose losses matter as their sum only.

    Args:
        shapes: of the answer's tensors; one that has others is a loss.
        hostile: so many of so many clients may lie (``votes``), where answers come by themselves;
            None: all are believed.
        on_answer: told how many have answered, where answers come by themselves.

    Returns:
        Who answered, and the sum, float64; no tensors where nobody did.
    """
    answers: dict[int, Params] = {}

    def take(client: int, answer: Params) -> None:
        if {n: tuple(x.shape) for n, x in answer.items()} != shapes:
            raise ProtocolError("other losses than were asked for")
        if hostile is not None:
            check(answer)
        answers[client] = answer
        on_answer(len(answers))

    heard = ask(transport, question, take, shapes, way)
    if way.channel.sums:
        return heard, {n: x.double() * UNIT for n, x in (heard.totals[0] or {}).items()}
    if hostile is not None and answers:
        trim = trimmed_of(hostile[1], hostile[0], len(heard.clients))
        return heard, trimmed_total([answers[c] for c in heard.clients], trim)
    names = shapes if answers else ()
    total = {n: torch.stack([answers[c][n].double() for c in heard.clients]).sum(0) for n in names}
    return heard, total
