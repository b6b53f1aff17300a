"""The scalar channel: K slopes of every local step instead of tensors.

Source: Just One Byte (arXiv 2306.10015), BAFFLE (arXiv 2301.12195), SPRY's per-iteration mode
(arXiv 2405.15551). Whoever holds the keys rebuilds the directions, so the slopes say all about a
client's local training; the server replays the client's own optimiser (forefed.local.replay).

The classification head, whose gradient is exact, is projected on directions of its own: no forward
pass is spent on them, and its slopes are never mixed with the adapters'. An exact engine's gradient
is projected in the same way, so the channel is open to every engine.
Seeds and scalars are compression, not privacy: whoever knows the directions learns K linear
measurements of the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core.errors import ProtocolError
from forefed.core.keys import Law
from forefed.core.types import ClientContext, Order, Update
from forefed.wire.codec import Codec, read_meta, update_meta
from forefed.wire.message import pack, pack_tensors, unpack, unpack_tensors

Count = Annotated[int, Field(ge=1)] | Literal["all"]
MAX_STEPS = 1_000_000


class Scalars(Codec):
    """K slopes of every local step; the server replays the client's optimiser."""

    kind: Literal["scalars"] = "scalars"
    head_directions: Count = 64
    """Directions on which the head's exact gradient is projected; "all": its elements, exact."""
    directions: Count | None = None
    """For exact engines: directions on which the adapters' gradient is projected (estimating
    engines bring their own). None: 16."""
    law: Law = "rademacher"
    """Law of the directions of projected gradients."""

    source: ClassVar[str] = "arXiv 2306.10015, arXiv 2405.15551"
    payload: ClassVar[Literal["delta", "projections"]] = "projections"
    wire_id: ClassVar[int] = 3

    def conflicts(self, config: Any) -> Iterator[str]:
        if config.engine.estimates and self.directions is not None:
            yield (
                "codec.directions is for exact engines; an estimating engine sends the slopes of "
                "its own engine.directions"
            )

    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        assert update.slopes is not None
        return pack("scalars", update_meta(update, ctx.round), pack_tensors(update.slopes))

    def decode(self, data: bytes, order: Order) -> Update:
        meta, body = unpack(data, "scalars")
        n, metrics = read_meta(meta, order)
        slopes = unpack_tensors(body)
        steps = {x.shape[0] for x in slopes.values() if x.ndim == 2}
        if len(steps) > 1 or any(x.ndim != 2 or x.dtype != torch.float32 for x in slopes.values()):
            raise ProtocolError(f"client {order.client}: slopes are float32 [steps, K] per group")
        if any(count > MAX_STEPS for count in steps):
            raise ProtocolError(f"client {order.client}: {max(steps)} local steps are too many")
        return Update(order.client, n, None, slopes, metrics)
