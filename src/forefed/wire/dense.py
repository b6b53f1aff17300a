"""The dense codec: the update's tensors as safetensors."""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.types import ClientContext, Order, Update
from forefed.wire.codec import Codec, read_meta, update_meta
from forefed.wire.message import check_shapes, pack, pack_tensors, unpack, unpack_tensors


class Dense(Codec):
    """The change of every assigned tensor, in full."""

    kind: Literal["dense"] = "dense"
    wire_id: ClassVar[int] = 2

    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        assert update.grad is not None
        return pack("dense", update_meta(update, ctx.round), pack_tensors(update.grad))

    def decode(self, data: bytes, order: Order) -> Update:
        meta, body = unpack(data, "dense")
        n, metrics = read_meta(meta, order)
        grad = unpack_tensors(body)
        check_shapes(grad, trees.pick(order.params, order.assigned), f"client {order.client}")
        if not trees.all_finite(grad):
            raise ProtocolError(f"client {order.client}: the update is not finite")
        return Update(order.client, n, trees.pick(grad, order.assigned), None, metrics)
