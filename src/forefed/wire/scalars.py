"""The scalar channel: K slopes of every local step instead of tensors, float32 each.

Source: Just One Byte (arXiv 2306.10015), BAFFLE (arXiv 2301.12195); see wire/projections.py.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from forefed.core.errors import ProtocolError
from forefed.core.types import ClientContext, Order, Update
from forefed.wire.codec import read_meta, update_meta
from forefed.wire.message import pack, pack_tensors, unpack, unpack_tensors
from forefed.wire.projections import MAX_STEPS, Projections


class Scalars(Projections):
    """K slopes of every local step; the server replays the client's optimiser."""

    kind: Literal["scalars"] = "scalars"

    source: ClassVar[str] = "arXiv 2306.10015, arXiv 2405.15551"
    wire_id: ClassVar[int] = 3

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
