"""``SecureSum`` in an exchange: sums of several groups at once at the server, one client's part.

    keys, shares   before anything is computed: who takes part, and who holds shares of whom
    train          beside the orders (or the question); masked words come back
    unmask         shares of those that were heard, and of those that were not

Clients whose answers have one form are one group, and one sum. Who is whose neighbour and what a
sum is called is drawn from the server's secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from forefed.channel.channel import TRAIN, Opened, Session, Sum, Upload, Work
from forefed.channel.fixed_point import Words
from forefed.channel.masks import PUBLIC_BYTES
from forefed.channel.messages import Message, decode_masked, encode_masked
from forefed.channel.secure_sum import SecureSum
from forefed.channel.secure_sum_client import Member
from forefed.channel.secure_sum_server import SEALED_BYTES, MaskedSum
from forefed.channel.summands import nothing, sum_of, words_of
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret

S = TypeVar("S")
T = TypeVar("T")


class MaskedSums(Session[T]):
    """The server's half."""

    def __init__(self, channel: SecureSum, work: Work[T]):
        self.channel, self.work = channel, work
        self.groups = [self._group(i) for i in range(len(work.groups))]
        self.of = {c: i for i, group in enumerate(work.groups) for c in group.clients}
        """The number of every client's group."""
        self.bodies: dict[str, dict[int, bytes]] = {"keys": {}, "shares": {}, "unmask": {}}
        """What clients have answered, by phase."""
        self.abandoned: dict[int, str] = {}
        """Why, by number of the group."""

    def _group(self, number: int) -> MaskedSum:
        channel, shapes = self.channel, self.work.groups[number].shapes
        zero = nothing(self.work.payload, shapes, channel)
        secret = self.work.secret.fold("group", number)
        return MaskedSum(
            secret.fold("session").bytes[:8],
            secret,
            zero,
            channel.min_group,
            channel.degree(),
            channel.colluding,
            channel.lost,
        )

    def ask(self, phase: str) -> Mapping[int, Message | None]:
        asked: dict[int, Message | None] = {}
        for i in range(len(self.groups)):
            if i not in self.abandoned:
                asked |= self._tried(i, self._asked, phase, i) or {}
        return asked

    def _asked(self, phase: str, number: int) -> dict[int, Message]:
        group = self.groups[number]
        session = group.session
        if phase == "keys":
            return dict.fromkeys(self.work.groups[number].clients, Message("keys", session))
        if phase == "shares":
            parts = group.take_keys(self._answers(number, "keys"))
            there = len(group.keys)
        elif phase == TRAIN:
            parts = group.take_shares(self._answers(number, "shares"))
            there = len(group.sharing)
        else:
            there = len(group.heard)
            alive = group.survivors()
            return {c: Message(phase, session, there, others) for c, others in alive.items()}
        return {c: Message.of(phase, session, there, p) for c, p in parts.items()}

    def take(self, phase: str, client: int, answer: bytes) -> None:
        group = self.groups[self.of[client]]
        if phase == TRAIN:
            return group.take_words(client, decode_masked(answer, group.session))
        message = Message.decode(answer)
        if (message.phase, message.session) != (phase, group.session):
            raise ProtocolError("an answer to another phase, or of another sum")
        self.bodies[phase][client] = message.body

    def open(self) -> Opened[T]:
        found: list[T] = []
        clients: list[int] = []
        for i, group in enumerate(self.groups):
            if i in self.abandoned:
                continue
            total = self._tried(i, group.open, self._answers(i, "unmask"))
            if total is not None:
                clients += group.heard
                found.append(self.work.of_sum(self._sum(i, total)))
        reason = next(iter(self.abandoned.values()), "")
        return Opened(found, tuple(sorted(clients)), summed=True, reason=reason)

    def why(self, client: int) -> str:
        return self.abandoned.get(self.of[client], "its answer did not fit the sum")

    def _sum(self, number: int, total: Words) -> Sum:
        group = self.groups[number]
        heard, room = tuple(sorted(group.heard)), len(group.sharing)
        asked = self.work.groups[number]
        return sum_of(total, asked, heard, room, self.channel, self.work.payload)

    def _answers(self, number: int, phase: str) -> dict[int, bytes]:
        bodies = self.bodies[phase]
        return {c: bodies[c] for c in self.work.groups[number].clients if c in bodies}

    def _tried(self, number: int, step: Callable[..., S], *args: Any) -> S | None:
        """The next step of a group; None: it is abandoned."""
        try:
            return step(*args)
        except ProtocolError as error:
            self.abandoned[number] = str(error)
            return None


def answered(
    channel: SecureSum,
    asked: Message,
    upload: Upload | None,
    kept: bytes | None,
    client: int,
    secret: Callable[[], Secret],
) -> tuple[bytes, bytes]:
    """The client's half of one phase, as ``Channel.answer``."""
    if asked.phase == "keys":
        seed = secret().fold("session", asked.session.hex())
        member = Member(client, asked.session, seed, channel.min_group)
        return Message("keys", asked.session, body=member.public()).encode(), member.dump()
    member = _member(asked, kept)
    if asked.phase == TRAIN:
        words = words_of(upload, channel, asked.group, lambda: member.seed.fold("upload"))
        masked, member = member.mask(words, asked.parts(SEALED_BYTES), asked.group)
        return encode_masked(asked.session, masked.to_bytes()), member.dump()
    if asked.phase == "shares":
        sealed, member = member.share(asked.parts(2 * PUBLIC_BYTES), asked.group)
        body = b"".join(sealed[c] for c in sorted(sealed))
    elif asked.phase == "unmask":
        body, member = member.unmask(asked.clients, asked.group)
    else:
        raise ProtocolError(f"a client is not asked for the phase '{asked.phase}'")
    return Message(asked.phase, asked.session, body=body).encode(), member.dump()


def _member(asked: Message, kept: bytes | None) -> Member:
    if kept is None:
        raise ProtocolError("a phase of a sum that this client knows nothing of")
    member = Member.load(kept)
    if member.session != asked.session:
        raise ProtocolError("a phase of another sum than the one that has begun")
    return member
