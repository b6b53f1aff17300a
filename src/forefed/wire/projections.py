"""What codecs of slopes share: K numbers of every local step, from which the server replays it.

Source: Just One Byte (arXiv 2306.10015), BAFFLE (arXiv 2301.12195), SPRY's per-iteration mode
(arXiv 2405.15551). Whoever holds the keys rebuilds the directions, so the slopes say all about a
client's local training; the server replays the client's own optimiser (forefed.local.replay).

The classification head, whose gradient is exact, is projected on directions of its own: no forward
pass is spent on them, and its slopes are never mixed with the adapters'. An exact engine's gradient
is projected in the same way, so the channel is open to every engine.
Seeds and slopes are compression, not privacy: whoever knows the directions learns K linear
measurements of the gradient.

Two forms: tensors (``scalars``), or few bits a slope behind the shapes (``coded``):

    meta  as of every update, and "s": [steps, K] by group
    body  the codes of every group in sorted order, each group row by row
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.wire.codec import Codec, read_meta, update_meta
from forefed.wire.message import pack, unpack

MAX_STEPS = 1_000_000
MAX_SLOPES = 1 << 28
"""Of one message: what a receiver makes room for at most."""


class Projections(Codec):
    """Base of the codecs of slopes."""

    payload: ClassVar[Literal["delta", "projections"]] = "projections"


class Coded(Projections):
    """Base of the codecs of less than a number a slope: slopes [K] of a step to codes and back."""

    loses: ClassVar[bool] = True
    bits: ClassVar[int]
    """Of one slope's code: 1, or 8."""

    @abstractmethod
    def code(self, slopes_K: Tensor, key: Key) -> Tensor:
        """Codes [K], uint8, of slopes (float64) of one step. What ``value`` gives has its own code
        whatever the key: a client that has stepped along it sends just that."""

    @abstractmethod
    def value(self, codes: Tensor) -> Tensor:
        """The slopes (float32) of codes of any shape; NaN: none, the step rests."""

    def rests(self, slopes_K: Tensor) -> Tensor:
        """Which slopes no code can say, and are told beside: [K] bool."""
        return torch.zeros_like(slopes_K, dtype=torch.bool)

    def lossy(self, payload: Params, ctx: ClientContext, step: int = 0) -> Params:
        arriving = {}
        for group, slopes_K in payload.items():
            codes = self.code(slopes_K.double(), self._key(ctx, group, step))
            arriving[group] = self.value(codes)
            arriving[group][self.rests(slopes_K)] = math.nan
        return arriving

    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        assert update.slopes is not None
        meta, body = update_meta(update, ctx.round), []
        meta["s"] = {g: [*update.slopes[g].shape] for g in sorted(update.slopes)}
        resting = {g: self.rests(x.flatten()) for g, x in update.slopes.items()}
        if any(bool(x.any()) for x in resting.values()):
            meta["x"] = {g: x.nonzero().flatten().tolist() for g, x in resting.items()}
        for group in meta["s"]:
            rows = [
                self.code(x_K.double(), self._key(ctx, group, step))
                for step, x_K in enumerate(update.slopes[group])
            ]
            codes = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.uint8)
            body.append(self._packed(codes))
        return pack(self.kind, meta, b"".join(body))

    def decode(self, data: bytes, order: Order) -> Update:
        meta, body = unpack(data, self.kind)
        n, metrics = read_meta(meta, order)
        who = f"client {order.client}"
        shapes = _shapes(meta.get("s"), who)
        counts = {g: steps * k for g, (steps, k) in shapes.items()}
        lengths = {g: -(-count * self.bits // 8) for g, count in counts.items()}
        if len(body) != sum(lengths.values()):
            raise ProtocolError(f"{who}: {len(body)} bytes of slopes, not {sum(lengths.values())}")
        resting = _positions(meta.get("x", {}), counts, who)
        slopes, start = {}, 0
        for group, shape in shapes.items():
            packed = body[start : start + lengths[group]]
            start += lengths[group]
            values = self.value(self._unpacked(packed, counts[group]))
            values[resting.get(group, [])] = math.nan
            slopes[group] = values.reshape(shape)
        return Update(order.client, n, None, slopes, metrics)

    def _key(self, ctx: ClientContext, group: str, step: int) -> Key:
        return ctx.key.fold(self.kind, group, step)

    def _packed(self, codes: Tensor) -> bytes:
        array = codes.numpy()
        return bytes(array if self.bits == 8 else np.packbits(array, bitorder="little"))

    def _unpacked(self, packed: memoryview, count: int) -> Tensor:
        array = np.frombuffer(packed, dtype="u1")
        if self.bits == 1:
            array = np.unpackbits(array, count=count, bitorder="little")
        return torch.from_numpy(array.copy())


def _shapes(told: object, who: str) -> dict[str, tuple[int, int]]:
    """[steps, K] by group, as a sender says them.

    Raises:
        ProtocolError: no table of pairs, more steps or slopes than there may be, or groups of
            unlike steps.
    """
    shapes: dict[str, tuple[int, int]] = {}
    if not isinstance(told, dict):
        raise ProtocolError(f"{who}: slopes are [steps, K] per group")
    for group, shape in sorted(told.items()):
        numbers = shape if isinstance(shape, list) else []
        if len(numbers) != 2 or any(type(x) is not int or not 0 <= x < 2**31 for x in numbers):
            raise ProtocolError(f"{who}: slopes are [steps, K] per group")
        shapes[group] = (numbers[0], numbers[1])
    if len({steps for steps, _ in shapes.values()}) > 1:
        raise ProtocolError(f"{who}: the groups have unlike numbers of steps")
    if any(steps > MAX_STEPS or steps * k > MAX_SLOPES for steps, k in shapes.values()):
        raise ProtocolError(f"{who}: more local steps or slopes than there may be")
    return shapes


def _positions(told: object, counts: dict[str, int], who: str) -> dict[str, list[int]]:
    """Slopes by group that no code says; raises ProtocolError for what is no such table."""
    if not isinstance(told, dict):
        raise ProtocolError(f"{who}: the resting slopes are no table")
    for group, places in told.items():
        within = group in counts and isinstance(places, list)
        if not within or not all(type(p) is int and 0 <= p < counts[group] for p in places):
            raise ProtocolError(f"{who}: the resting slopes are none of this message")
    return told
