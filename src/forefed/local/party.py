"""A client's half of the channel: its update, or its answer to a question, as it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from forefed.channel import Channel, Plain
from forefed.channel.channel import Numbers, Shapes, Upload
from forefed.channel.messages import Message
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.types import ClientContext, Order, Update
from forefed.data.examples import ClientData
from forefed.local.groups import groups_of
from forefed.local.training import Trainer
from forefed.wire.message import frames, kind_of


class Answering(Protocol):
    """Answers questions about a client's own rows (start/answer.py)."""

    def __call__(self, question: bytes, data: ClientData) -> bytes:
        """As it travels; raises ProtocolError where there is none."""

    def whole(self, question: bytes, data: ClientData, secret: Secret) -> Numbers:
        """As whole numbers that can be summed; noise among them is drawn from the secret."""


def shapes_of(trainer: Trainer, order: Order) -> Shapes:
    """What an answer to this order holds, sorted by name, where answers are summed."""
    if not trainer.codec.sends_slopes:
        return {n: tuple(order.params[n].shape) for n in sorted(order.assigned)}
    groups = groups_of(trainer.engine, trainer.codec, order, trainer.task.head, trainer.directions)
    steps = trainer.settings.max_steps
    assert steps is not None, "SecureSum.conflicts wants it"
    return {
        name: (steps, group.directions.count(trees.pick(order.params, group.names)))
        for name, group in sorted(groups.items())
    }


@dataclass(frozen=True)
class Party:
    """Any client of one run. What it keeps between two phases, ``kept``, may be secret and lives as
    long as the exchange."""

    trainer_of: Callable[[int], Trainer]
    channel: Channel = Plain()  # noqa: RUF009 (frozen)
    answers: Answering | None = None

    def upload(self, update: Update, ctx: ClientContext) -> Upload:
        """What is to leave of an order."""
        trainer = self.trainer_of(ctx.client)
        return Upload(
            encode=partial(trainer.codec.encode, update, ctx),
            update=update,
            shapes=partial(shapes_of, trainer, ctx.order),
        )

    def send(
        self, upload: Upload, order: Order, kept: bytes | None, secret: Callable[[], Secret]
    ) -> tuple[bytes, bytes | None]:
        """The answer to an order, and what to keep.

        Raises:
            ProtocolError: an exchange that this client will not or cannot take part in.
        """
        asked = Message.decode(order.channel) if order.channel else None
        if asked is not None and asked.phase != "train":
            raise ProtocolError(f"an order in the phase '{asked.phase}'")
        return self.channel.answer(asked, upload, kept, order.client, secret)

    def tell(
        self,
        message: bytes,
        client: int,
        data: ClientData,
        kept: bytes | None,
        secret: Callable[[], Secret],
    ) -> tuple[bytes, bytes | None]:
        """The answer to a question, or to a message of another phase, and what to keep.

        Args:
            data: the client's rows.
            secret: the client's own, from which a new exchange's keys follow.

        Raises:
            ProtocolError: as for ``send``.
        """
        parts = list(frames(message))
        questions = [part for part in parts if kind_of(part) == "question"]
        beside = [Message.decode(part) for part in parts if part not in questions]
        asked = beside[0] if beside else None
        train = asked is None or asked.phase == "train"
        if len(questions) != train or len(beside) > 1:
            raise ProtocolError("what came is no question, nor a phase of the channel")
        upload = self._answer(questions[0], data) if questions else None
        return self.channel.answer(asked, upload, kept, client, secret)

    def ends(self, message: bytes) -> bool:
        """Is this message of the last phase, after which a client may forget the exchange?"""
        last = self.channel.phases[-1]
        return kind_of(message) == "channel" and Message.decode(message).phase == last

    def _answer(self, question: bytes, data: ClientData) -> Upload:
        return Upload(
            encode=lambda: self._answering()(question, data),
            whole=lambda secret: self._answering().whole(question, data, secret),
        )

    def _answering(self) -> Answering:
        if self.answers is None:
            raise ProtocolError("there is nobody here who answers questions")
        return self.answers
