"""The quantised codec: the update's tensors as whole numbers of a few bits, without a bias.

Source: QSGD (Alistarh et al., NeurIPS 2017, arXiv 1610.02132, section 3.1), the largest element
as a tensor's scale in place of its norm. An element x of a tensor with m levels on either side is
sent as floor(x m / max|x| + u), u uniform in [0, 1): what arrives has the mean x and is less than
max|x| / m away. The u are a function of the run's key, round and client, so the
same update gives the same bytes, and another seed rounds otherwise.

    body  "scales" [tensors] float32, in sorted order of the assigned names
          "levels" [bytes] uint8: level + m of every element, two of them a byte at 4 bits (the
          first in the lower half), little-endian at 16
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.wire.codec import Codec, read_meta, update_meta
from forefed.wire.message import check_shapes, pack, pack_tensors, unpack, unpack_tensors


class Quantised(Codec):
    """The change of every assigned tensor, rounded at random to a few bits an element."""

    kind: Literal["quantised"] = "quantised"
    bits: Literal[4, 8, 16] = 8
    """Bits of an element; each tensor has one scale beside them."""

    source: ClassVar[str] = "arXiv 1610.02132"
    wire_id: ClassVar[int] = 8
    loses: ClassVar[bool] = True

    @property
    def m(self) -> int:
        """Levels on either side of 0."""
        return int(2 ** (self.bits - 1)) - 1

    def lossy(self, payload: Params, ctx: ClientContext, step: int = 0) -> Params:
        scales, levels_D = self._rounded(payload, ctx)
        like = {name: payload[name] for name in sorted(payload)}
        values_D = levels_D * self._steps(scales, like)
        arriving = {n: x.to(like[n].dtype) for n, x in trees.unflatten(values_D, like).items()}
        return trees.pick(arriving, payload)

    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        assert update.grad is not None
        scales, levels_D = self._rounded(update.grad, ctx)
        body = {"scales": scales, "levels": self._packed(levels_D)}
        return pack("quantised", update_meta(update, ctx.round), pack_tensors(body))

    def _rounded(self, delta: Params, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        """The scale of every tensor, in sorted order of the names, and the level of every element:
        [tensors], [D]."""
        grad = {name: delta[name].float() for name in sorted(delta)}
        scales = torch.tensor([float(x.abs().max()) if x.numel() else 0.0 for x in grad.values()])
        flat_D = trees.flatten(grad)
        step_D = self._steps(scales, grad).clamp_min(torch.finfo(torch.float32).tiny)
        u_D = ctx.key.fold("quantised").uniform(flat_D.shape)
        # what is not finite makes the scale so, which the receiver refuses
        levels_D = torch.floor(flat_D / step_D + u_D).clamp(-self.m, self.m).nan_to_num()
        return scales, levels_D

    def decode(self, data: bytes, order: Order) -> Update:
        meta, body = unpack(data, "quantised")
        n, metrics = read_meta(meta, order)
        like = {name: order.params[name] for name in sorted(order.assigned)}
        expected = {
            "scales": torch.empty(len(like)),
            "levels": torch.empty(-(-trees.size(like) * self.bits // 8), dtype=torch.uint8),
        }
        received = unpack_tensors(body)
        check_shapes(received, expected, f"client {order.client}")
        steps_D = self._steps(received["scales"], like)
        values_D = self._levels(received["levels"])[: len(steps_D)] * steps_D
        grad = {n: x.to(like[n].dtype) for n, x in trees.unflatten(values_D, like).items()}
        if not trees.all_finite(grad):
            raise ProtocolError(f"client {order.client}: the update is not finite")
        return Update(order.client, n, trees.pick(grad, order.assigned), None, metrics)

    def _steps(self, scales: Tensor, like: Params) -> Tensor:
        """The distance of two levels, for every element: [D]."""
        counts = torch.tensor([x.numel() for x in like.values()])
        return (scales / self.m).repeat_interleave(counts)

    def _packed(self, levels_D: Tensor) -> Tensor:
        """Levels from -m to m as bytes."""
        codes = (levels_D + self.m).numpy().astype("<u2" if self.bits == 16 else "u1")
        if self.bits == 4:
            pairs = np.pad(codes, (0, len(codes) % 2)).reshape(-1, 2)
            codes = pairs[:, 0] | pairs[:, 1] << 4
        return torch.from_numpy(codes.view("u1").copy())

    def _levels(self, packed: Tensor) -> Tensor:
        """The inverse; with 4 bits and an odd number of elements one more than they are."""
        codes = packed.numpy().view("<u2" if self.bits == 16 else "u1")
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
        return torch.from_numpy(codes.astype(np.float32)) - self.m
