"""A hierarchy: aggregators near the clients add up, and the server reads their sums.

Contributions are whole numbers, as in a secure sum but without masks, so two levels, ten, or none
end with the same bits: addition of whole numbers knows no order. An aggregator needs neither model
nor settings for it, and sends as many bytes as one client.

What cannot be done to a sum is refused by what the parts of a run say of themselves
(``Summing.conflicts``): rules and modifiers that read single contributions, slopes along each
client's own directions.

Differences from a mean of float32 tensors (``channel.kind = "plain"``): every number is rounded to
the words' last digit before it is added (``fraction``), not after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.channel.channel import TRAIN, Opened, Session, T, Upload, Work
from forefed.channel.fixed_point import WordBits, Words
from forefed.channel.messages import Message, decode_sum, encode_sum
from forefed.channel.summands import nothing, sum_of, words_of
from forefed.channel.summing import Summing
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.settings import SERVER_ONLY


class PartialSums(Summing):
    """Sums that aggregators between clients and server have added up; exact whatever the tree."""

    kind: Literal["partial_sums"] = "partial_sums"
    bits: WordBits = 64
    aggregators: Annotated[int, Field(ge=0), SERVER_ONLY] = 0
    """Of a rehearsal: so many, between which the clients are divided; 0: the server adds up itself.
    Between machines there are those that have joined ('forefed aggregator')."""

    clips: ClassVar[Mapping[str, float]] = {"delta": 64.0, "projections": 1024.0}
    takes: ClassVar[str] = "adds up before the server"

    def told(self) -> str:
        return (
            "Aggregators added contributions up, and the server saw their sums; an aggregator saw "
            "those of its own clients."
        )

    def session(self, work: Work[T]) -> Session[T]:
        return Totals(self, work)

    def answer(
        self,
        asked: Message | None,
        upload: Upload | None,
        kept: bytes | None,
        client: int,
        secret: Callable[[], Secret],
    ) -> tuple[bytes, bytes | None]:
        if asked is None or asked.phase != TRAIN or asked.group < 1:
            raise ProtocolError("work without its sum, where contributions are added up")
        words = words_of(upload, self, asked.group, lambda: secret().fold("upload"))
        return encode_sum(asked.session, (client,), words), None


class Totals(Session[T]):
    """The server's half."""

    def __init__(self, channel: PartialSums, work: Work[T]):
        self.channel, self.work = channel, work
        secrets = [work.secret.fold("group", i) for i in range(len(work.groups))]
        self.sessions = [secret.fold("session").bytes[:8] for secret in secrets]
        self.of = {c: i for i, group in enumerate(work.groups) for c in group.clients}
        """The number of every client's group."""
        self.totals = [nothing(work.payload, group.shapes, channel) for group in work.groups]
        self.heard: list[set[int]] = [set() for _ in work.groups]

    def ask(self, phase: str) -> Mapping[int, Message | None]:
        sizes = [len(group.clients) for group in self.work.groups]
        return {c: Message(phase, self.sessions[i], sizes[i]) for c, i in self.of.items()}

    def take(self, phase: str, client: int, answer: bytes) -> None:
        self.take_sum((client,), answer)

    def take_sum(self, clients: Sequence[int], answer: bytes) -> None:
        session, named, words = decode_sum(answer)
        number = self.of[clients[0]]
        total, heard = self.totals[number], self.heard[number]
        strangers = {*clients} - {*self.work.groups[number].clients}
        if session != self.sessions[number] or named != tuple(sorted(clients)) or strangers:
            raise ProtocolError("a sum of others than were asked for it")
        if heard & {*clients} or not words.alike(total):
            raise ProtocolError("a client is in two sums, or its words are others")
        total.add(words)
        heard |= {*clients}

    def open(self) -> Opened[T]:
        found: list[T] = []
        everybody: list[int] = []
        for total, group, there in zip(self.totals, self.work.groups, self.heard, strict=True):
            if there:
                heard, room = tuple(sorted(there)), len(group.clients)
                one = sum_of(total, group, heard, room, self.channel, self.work.payload)
                found.append(self.work.of_sum(one))
                everybody += heard
        return Opened(found, tuple(sorted(everybody)), summed=True)


@dataclass
class Adding:
    """An aggregator's half: the sums of what its clients answer, one for each session. Each is one
    vector, whatever the number of clients."""

    sums: dict[bytes, tuple[list[int], Words]] = field(default_factory=dict)
    """Who is in it, and their words."""

    def take(self, clients: Sequence[int], answer: bytes) -> None:
        """The words of one client, or of those that an aggregator below has added up.

        Raises:
            ProtocolError: no words, of other clients, or of another number than the others'.
        """
        session, named, words = decode_sum(answer)
        if named != tuple(sorted(clients)):
            raise ProtocolError("a sum of others than were asked for it")
        if session not in self.sums:
            self.sums[session] = [*named], words
            return
        there, total = self.sums[session]
        if {*there} & {*named} or not words.alike(total):
            raise ProtocolError("a client is in two sums, or its words are others")
        total.add(words)
        there += named

    def messages(self) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Every sum as it travels, and whose answers are in it."""
        for session, (clients, total) in self.sums.items():
            yield tuple(sorted(clients)), encode_sum(session, clients, total)
