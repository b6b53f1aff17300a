"""What the two codecs share: the meta data of an update, and the checks of a receiver."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from forefed.core.errors import ProtocolError
from forefed.core.settings import Choice
from forefed.core.types import ClientContext, Order, Update
from forefed.wire.message import short


class Codec(Choice):
    """Base: an update as bytes, and back."""

    payload: ClassVar[Literal["delta", "projections"]] = "delta"
    """What an update holds: its change by parameter, or slopes of its steps."""

    @property
    def sends_slopes(self) -> bool:
        return self.payload == "projections"

    @abstractmethod
    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        """The client's half; what it draws, it draws from ``ctx.key``."""

    @abstractmethod
    def decode(self, data: bytes, order: Order) -> Update:
        """The server's half: checks that the bytes answer this order.

        Raises:
            ProtocolError: damaged, of another round or client, or of the wrong names or shapes.
        """


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
