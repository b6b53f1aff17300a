"""What codecs share: their numbers on the wire, the meta data of an update, a receiver's checks."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import ProtocolError, UserError
from forefed.core.settings import Choice, Registry
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.wire.flat import Form
from forefed.wire.message import KINDS, MESSAGES, OURS, short


class Codec(Choice):
    """Base: an update as bytes, and back."""

    wire_id: ClassVar[int]
    """The number of its messages, unlike all others' and never given to another form. Below 1000
    are Forefed's own; a package takes one from there up to 65535."""
    payload: ClassVar[Literal["delta", "projections"]] = "delta"
    """What an update holds: its change by parameter, or slopes of its steps."""

    loses: ClassVar[bool] = False
    """Does something else arrive than was sent (``lossy``)?"""
    carries: ClassVar[bool] = False
    """Does it bring what modifiers send beside a change (``Modifier.beside``)?"""

    @property
    def sends_slopes(self) -> bool:
        return self.payload == "projections"

    def lossy(self, payload: Params, ctx: ClientContext, step: int = 0) -> Params:
        """What arrives of what is sent: ``decode`` gives it, bit for bit, for what ``encode`` took.

        A client that computes on what the server will hold calls it: every local step along slopes
        does.

        Args:
            payload: a change by parameter; or the slopes [K] of one local step by group.
            ctx: the round's. What ``lossy`` draws, ``encode`` draws again.
            step: number of the local step, where slopes are sent.
        """
        return payload

    @abstractmethod
    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        """The client's half; what it draws, it draws from ``ctx.key``."""

    @abstractmethod
    def decode(self, data: bytes, order: Order) -> Update:
        """The server's half: checks that the bytes answer this order.

        Raises:
            ProtocolError: damaged, of another round or client, or of the wrong names or shapes.
        """

    def vector(self, data: bytes, order: Order, form: Form) -> tuple[Update, NDArray[np.float32]]:
        """``decode`` and ``counts``, with the change as one vector [D] in the order of ``form`` and
        not in the update. It may lie in the memory of ``data``, and need not be finite.

        Args:
            form: of the tensors that the order assigns.

        Raises:
            ProtocolError: as ``decode``.
        """
        update = self.decode(data, order)
        assert update.grad is not None, "a change, not slopes"
        metrics = {**update.metrics, **self.counts(update)}
        return replace(update, grad=None, metrics=metrics), form.joined(update.grad)

    def counts(self, update: Update) -> dict[str, float]:
        """What the server can say of the form in which this came, beside the client's metrics."""
        return {}


class Codecs(Registry[Codec]):
    """The codecs, each with a number of its own on the wire."""

    def _checked(self, entry: type[Codec]) -> str:
        kind = super()._checked(entry)
        number, name = getattr(entry, "wire_id", None), entry.__qualname__
        if type(number) is not int or not 0 < number < 2**16:
            raise UserError(
                f"codec: {name} needs the number of its messages, wire_id: ClassVar[int] = "
                f"{OURS} to 65535"
            )
        if kind in MESSAGES:
            raise UserError(f"codec: '{kind}' is the name of another message; give another kind")
        holder = next((k for k, n in KINDS.items() if n == number and k != kind), None)
        if holder is not None:
            raise UserError(
                f"codec: wire_id = {number} of {name} is that of '{holder}'; give another, from "
                f"{OURS} to 65535"
            )
        return kind

    def _taken_in(self, entry: type[Codec]) -> None:
        KINDS[entry.kind_name()] = entry.wire_id


def update_meta(update: Update, round: int) -> dict[str, Any]:
    return {
        "r": round,
        "c": update.client,
        "n": update.n_examples,
        "m": {name: short(value) for name, value in update.metrics.items()},
    }


def read_meta(meta: dict[str, Any], order: Order) -> tuple[int, dict[str, float]]:
    """Example count and metrics of an update that answers ``order``."""
    if (meta.get("r"), meta.get("c")) != (order.round, order.client):
        raise ProtocolError(
            f"an answer of client {meta.get('c')} for round {meta.get('r')} came to the order of "
            f"client {order.client} for round {order.round}"
        )
    n, metrics = meta.get("n"), meta.get("m")
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 2**40:
        raise ProtocolError(f"client {order.client}: {n!r} is no number of examples")
    if not isinstance(metrics, dict):
        raise ProtocolError(f"client {order.client}: the metrics are no table")
    try:
        numbers = {
            str(name): float("nan") if value is None else float(value)
            for name, value in metrics.items()
            if value is None or isinstance(value, int | float)
        }
    except OverflowError:
        raise ProtocolError(f"client {order.client}: a metric is no number that fits") from None
    return n, numbers
