"""The dense codec: the update's tensors as safetensors."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.wire.codec import Codec, read_meta, update_meta
from forefed.wire.flat import Form, finite, form_of
from forefed.wire.message import check_shapes, pack, pack_tensors, unpack, unpack_tensors


class Dense(Codec):
    """The change of every assigned tensor, in full."""

    kind: Literal["dense"] = "dense"
    wire_id: ClassVar[int] = 2
    carries: ClassVar[bool] = True

    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        assert update.grad is not None
        return pack(
            "dense", update_meta(update, ctx.round), pack_tensors({**update.grad, **update.beside})
        )

    def decode(self, data: bytes, order: Order) -> Update:
        update, x_D, form = self._read(data, order)
        if x_D is None or form is None:
            return update
        x_D = x_D.copy()
        if not finite(x_D):
            raise _not_finite(order)
        return _parted(update, form.tensors(x_D), order)

    def vector(self, data: bytes, order: Order, form: Form) -> tuple[Update, NDArray[np.float32]]:
        update, x_D, _ = self._read(data, order, form)
        if x_D is None:
            return replace(update, grad=None), form.joined(update.grad or {})
        return update, x_D

    def _read(
        self, data: bytes, order: Order, form: Form | None = None
    ) -> tuple[Update, NDArray[np.float32] | None, Form | None]:
        """The update without its change, and that as a vector; or with it, where it came in
        another form, and no vector."""
        meta, body = unpack(data, "dense")
        n, metrics = read_meta(meta, order)
        like = {**trees.pick(order.params, order.assigned), **order.beside}
        form = form or form_of(like)
        x_D = form.vector(body) if form is not None else None
        if x_D is not None:
            return Update(order.client, n, None, None, metrics), x_D, form
        grad = unpack_tensors(body)
        check_shapes(grad, like, f"client {order.client}")
        if not trees.all_finite(grad):
            raise _not_finite(order)
        return _parted(Update(order.client, n, None, None, metrics), grad, order), None, None


def _parted(update: Update, tensors: Params, order: Order) -> Update:
    """The update with the change that was ordered, and what came beside it."""
    beside = trees.pick(tensors, order.beside)
    return replace(update, grad=trees.pick(tensors, order.assigned), beside=beside)


def _not_finite(order: Order) -> ProtocolError:
    return ProtocolError(f"client {order.client}: the update is not finite")
