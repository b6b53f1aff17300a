"""A client's half of the channel ``secure_sum``, and how an update stands in its words.

The words of a round are the same tensors of every client of the group, sorted by name: changes of
the assigned parameters, or slopes [max_steps, K] by group (a client with fewer steps has zeros
there, as where slopes are averaged). Examples and metrics stand in 64-bit words beside them, so
nothing of a client travels by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from forefed.channel import SecureSum
from forefed.channel.messages import Message, encode_masked
from forefed.channel.words import Words
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.types import Order, Params, Update
from forefed.data.examples import ClientData
from forefed.local.groups import groups_of
from forefed.local.training import Trainer
from forefed.wire.message import frames, kind_of

if TYPE_CHECKING:  # the library that it needs is an extra
    from forefed.channel.client import Member

Shapes = Mapping[str, tuple[int, ...]]
SUMMED = ("steps", "skipped", "clamped", "forwards")
"""Metrics that are added up; others (a peak is no sum) do not travel."""
ABOUT = ("clients", "examples", *SUMMED, "loss", "loss_examples", "clipped", "capped")
"""Numbers beside the tensors. ``loss``: times examples; ``clipped``, ``capped``: clients that were
scaled down to the clip, or had more examples than count."""
UNIT = 2.0**-20
"""Of the numbers beside the tensors, and of sums that are no whole numbers."""
LARGEST = 2.0**28
"""Of such a number in absolute value: sums of up to 2^15 of them fit 64 bits."""

Numbers = NDArray[np.int64]


def shapes_of(trainer: Trainer, order: Order) -> dict[str, tuple[int, ...]]:
    """What an answer to this order holds, sorted by name."""
    if not trainer.codec.sends_slopes:
        return {n: tuple(order.params[n].shape) for n in sorted(order.assigned)}
    groups = groups_of(trainer.engine, trainer.codec, order, trainer.task.head, trainer.draw)
    steps = trainer.settings.max_steps
    assert steps is not None, "SecureSum.conflicts wants it"
    return {
        name: (steps, group.directions.count(trees.pick(order.params, group.names)))
        for name, group in sorted(groups.items())
    }


def empty(shapes: Shapes, channel: SecureSum) -> Words:
    """Words of nothing."""
    return Words.zero(sum(map(math.prod, shapes.values())), len(ABOUT), channel.bits)


def to_words(update: Update, shapes: Shapes, channel: SecureSum, clients: int) -> Words:
    """What a client adds to a sum of so many.

    Raises:
        ProtocolError: a contribution that is not finite; more clients than the words have room for.
    """
    slopes = update.slopes is not None
    point = channel.point("projections" if slopes else "delta", clients)
    if not point.fits(clients):
        raise ProtocolError(f"a sum of {clients} clients does not fit words of {point.bits} bits")
    silent = not update.metrics  # a client that may say nothing of itself, as under privacy noise
    weight = min(update.n_examples, channel.max_examples)
    words = empty(shapes, channel)
    clipped = False
    if weight:
        held = _padded(update.slopes, shapes) if update.slopes is not None else update.grad or {}
        flat = np.concatenate([held[n].detach().cpu().double().numpy().ravel() for n in shapes])
        values, clipped = point.encode(flat, weight, inward=silent)
        words = Words(values, words.about)
    loss = update.metrics.get("loss", math.nan)
    there = weight > 0 and math.isfinite(loss)
    numbers = {
        "clients": 1.0,
        "examples": float(weight),
        **{name: update.metrics.get(name, 0.0) for name in SUMMED},
        "loss": loss * weight if there else 0.0,
        "loss_examples": float(weight) if there else 0.0,
        "clipped": float(clipped and not silent),
        "capped": float(update.n_examples > weight and not silent),
    }
    about = whole(np.array([numbers[name] for name in ABOUT]))
    return Words(words.values, about.view(np.uint64))


def of_words(
    total: Words, shapes: Shapes, channel: SecureSum, clients: int, client: int, slopes: bool
) -> Update:
    """The sum as the one update of its group: the weighted mean, and the metrics together.

    Args:
        clients: for how many the words had room.
        client: under whose number it stands.
    """
    about = dict(zip(ABOUT, (total.about.view(np.int64) * UNIT).tolist(), strict=True))
    weight = about.pop("examples")
    point = channel.point("projections" if slopes else "delta", clients)
    mean = torch.from_numpy(point.decode(total.values) / max(weight, 1.0)).float()
    tensors: Params = {}
    for (name, shape), x in zip(
        shapes.items(), mean.split([math.prod(s) for s in shapes.values()]), strict=True
    ):
        tensors[name] = x.reshape(shape).clone()
    loss, terms = about.pop("loss"), about.pop("loss_examples")
    metrics = {**about, "loss": loss / terms if terms else math.nan}
    sent: tuple[Params | None, Params | None] = (None, tensors) if slopes else (tensors, None)
    members = round(about["clients"])
    return Update(client, round(weight), *sent, metrics, clients=members)


def whole(x: NDArray[np.float64]) -> Numbers:
    """Numbers in units of ``UNIT``; what is no number, or beyond the largest, as the largest."""
    bounded = np.nan_to_num(x, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)
    return np.rint(np.clip(bounded, -LARGEST, LARGEST) / UNIT).astype(np.int64)


@dataclass(frozen=True)
class Summing:
    """What any client of one run does in a secure sum. What it keeps between two phases, ``kept``,
    is secret and lives as long as the sum."""

    channel: SecureSum
    trainer_of: Callable[[int], Trainer]
    whole: Callable[[bytes, ClientData], Numbers] | None = None
    """The numbers that answer a question about a client's own rows (start/answer.py)."""

    def update(self, update: Update, order: Order, kept: bytes | None) -> tuple[bytes, bytes]:
        """Phase "train": the masked words of an update, and what to keep.

        Raises:
            ProtocolError: a sum that this client will not or cannot take part in.
        """
        if not order.channel:
            raise ProtocolError("an order without its sum, where contributions are hidden")
        asked = Message.decode(order.channel)
        shapes = shapes_of(self.trainer_of(order.client), order)
        words = to_words(update, shapes, self.channel, asked.group)
        return self._masked(asked, words, kept)

    def tell(
        self, message: bytes, client: int, data: ClientData, kept: bytes | None, secret: Secret
    ) -> tuple[bytes, bytes]:
        """The answer to a message of the other phases, or to a question that is summed, and what to
        keep.

        Args:
            data: the client's rows.
            secret: the client's own, from which a new sum's keys follow.

        Raises:
            ProtocolError: as for ``update``.
        """
        *questions, last = frames(message)
        asked = Message.decode(last)
        if questions:
            if kind_of(questions[0]) != "question" or self.whole is None:
                raise ProtocolError("what came beside a channel's message is no question")
            numbers = self.whole(questions[0], data)
            words = Words(Words.zero(0, 0, self.channel.bits).values, numbers.view(np.uint64))
            return self._masked(asked, words, kept)
        return self._phase(asked, client, kept, secret)

    def _phase(
        self, asked: Message, client: int, kept: bytes | None, secret: Secret
    ) -> tuple[bytes, bytes]:
        from forefed.channel.client import Member
        from forefed.channel.masks import PUBLIC_BYTES

        if asked.phase == "keys":
            seed = secret.fold("session", asked.session.hex())
            member = Member(client, asked.session, seed, self.channel.min_group)
            answer = member.public()
        elif asked.phase == "shares":
            member = self._member(asked, kept)
            sealed, member = member.share(asked.parts(2 * PUBLIC_BYTES), asked.group)
            answer = b"".join(sealed[c] for c in sorted(sealed))
        elif asked.phase == "unmask":
            answer, member = self._member(asked, kept).unmask(asked.clients, asked.group)
        else:
            raise ProtocolError(f"a client is not asked for the phase '{asked.phase}'")
        return Message(asked.phase, asked.session, body=answer).encode(), member.dump()

    def _masked(self, asked: Message, words: Words, kept: bytes | None) -> tuple[bytes, bytes]:
        from forefed.channel.server import SEALED_BYTES

        if asked.phase != "train":
            raise ProtocolError(f"words are sent in the phase 'train', not '{asked.phase}'")
        member = self._member(asked, kept)
        masked, member = member.mask(words, asked.parts(SEALED_BYTES), asked.group)
        return encode_masked(asked.session, masked.to_bytes()), member.dump()

    def _member(self, asked: Message, kept: bytes | None) -> Member:
        from forefed.channel.client import Member

        if kept is None:
            raise ProtocolError("a phase of a sum that this client knows nothing of")
        member = Member.load(kept)
        if member.session != asked.session:
            raise ProtocolError("a phase of another sum than the one that has begun")
        return member


def _padded(slopes: Mapping[str, torch.Tensor], shapes: Shapes) -> Params:
    """Slopes [steps, K] of every group with zeros for steps that were not taken, or whose slopes
    were not finite.

    Raises:
        ProtocolError: more steps, or another number of slopes.
    """
    held: Params = {}
    for name, shape in shapes.items():
        x = slopes[name]
        whole_steps = torch.zeros(shape, dtype=torch.float64)
        if len(x):
            if len(x) > shape[0] or x.shape[1] != shape[1]:
                raise ProtocolError(f"{tuple(x.shape)} slopes of '{name}', at most {shape}")
            finite = torch.isfinite(x).all(1, keepdim=True)
            whole_steps[: len(x)] = torch.where(finite, x, 0.0).double()
        held[name] = whole_steps
    return held
