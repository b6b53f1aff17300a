"""The largest elements of a change: their places and their values.

Source: Deep Gradient Compression (Lin et al., ICLR 2018, arXiv 1712.01887), which sends 0.1 %.
Departures: the largest of the whole update by exact selection, ties to the lowest place (published:
of every tensor, by a sampled threshold; small units would send more than their share); values of
16 bits are relative to the largest one, so that no change is too small for them. What stays behind
is lost, unless a modifier keeps it: "error_feedback", or "dgc".

    meta  as of every update, and "e": values are times 2^e
    body  k places, int32, ascending, of the assigned parameters in sorted order of their names, one
          after the other; k values, float16 or float32. k = ceil(ratio D); little-endian
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.wire.codec import Codec, read_meta, update_meta
from forefed.wire.message import pack, unpack

QUARTER = 4  # every stage of the warm-up sends a quarter of the former one's


class Sparse(Codec):
    """The largest elements of the change, each with its place; the rest stays behind."""

    kind: Literal["sparse"] = "sparse"
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the elements that is sent (DGC: 0.001), rounded up."""
    values: Literal["float16", "float32"] = "float16"
    """Of a value; a place is 4 bytes beside it."""
    warm_up: Annotated[int, Field(ge=0)] = 0
    """Rounds of each stage at the beginning, which send 1/4, 1/16, 1/64, ... until that is less
    than ``ratio`` (DGC: an epoch each). 0: ``ratio`` from the first round on."""

    source: ClassVar[str] = "DGC, arXiv 1712.01887"
    wire_id: ClassVar[int] = 13
    loses: ClassVar[bool] = True

    def conflicts(self, config: Any) -> Iterator[str]:
        if config.aggregator.coordinatewise:
            yield (
                f"aggregator.kind = '{config.aggregator.kind}' asks element by element what most "
                "clients say, and under codec.kind = 'sparse' most say nothing of it; use "
                "aggregator.kind = 'mean', or another codec"
            )

    def count(self, size: int, round: int) -> int:
        """Elements that are sent of ``size`` in this round (from 1)."""
        share = self.ratio
        if self.warm_up:
            share = max(share, QUARTER ** -(1 + (round - 1) // self.warm_up))
        return math.ceil(share * size)

    def lossy(self, payload: Params, ctx: ClientContext, step: int = 0) -> Params:
        like = {name: payload[name] for name in sorted(payload)}
        places, values, exponent = self._chosen(like, ctx.round)
        return trees.pick(_spread(places, _whole(values, exponent), like), payload)

    def encode(self, update: Update, ctx: ClientContext) -> bytes:
        assert update.grad is not None
        like = {name: update.grad[name] for name in sorted(update.grad)}
        places, values, exponent = self._chosen(like, ctx.round)
        body = places.numpy().astype("<i4").tobytes() + values.numpy().astype(self._form).tobytes()
        return pack("sparse", {**update_meta(update, ctx.round), "e": exponent}, body)

    def decode(self, data: bytes, order: Order) -> Update:
        meta, body = unpack(data, "sparse")
        n, metrics = read_meta(meta, order)
        like = {name: order.params[name] for name in sorted(order.assigned)}
        size, who = trees.size(like), f"client {order.client}"
        k = self.count(size, order.round)
        expected = k * (4 + np.dtype(self._form).itemsize)
        if len(body) != expected:
            raise ProtocolError(f"{who}: {len(body)} bytes of elements, not {expected}")
        places = torch.from_numpy(np.frombuffer(body[: 4 * k], "<i4").astype(np.int64))
        values = torch.from_numpy(np.frombuffer(body[4 * k :], self._form).astype(self._form[1:]))
        exponent = meta.get("e")
        if type(exponent) is not int or not -200 <= exponent <= 200:
            raise ProtocolError(f"{who}: {exponent!r} is no exponent")
        if k and not (int(places[0]) >= 0 and int(places[-1]) < size):
            raise ProtocolError(f"{who}: an element lies beyond the parameters")
        if not bool((places[1:] > places[:-1]).all()):
            raise ProtocolError(f"{who}: the elements are not in their order")
        grad = _spread(places, _whole(values, exponent), like)
        if not trees.all_finite(grad):
            raise ProtocolError(f"{who}: the update is not finite")
        return Update(order.client, n, trees.pick(grad, order.assigned), None, metrics)

    @property
    def _form(self) -> str:
        return "<f2" if self.values == "float16" else "<f4"

    def _chosen(self, like: Params, round: int) -> tuple[Tensor, Tensor, int]:
        """Places [k] int64, values [k] as they travel, and the exponent beside them."""
        flat_D = trees.flatten({n: x.float() for n, x in like.items()})
        places = largest(flat_D, self.count(len(flat_D), round))
        values = flat_D[places]
        if self.values == "float32":
            return places, values, 0
        top = float(values.abs().max()) if len(values) else 0.0
        exponent = math.frexp(top)[1] if math.isfinite(top) else 0
        return places, torch.ldexp(values.double(), torch.tensor(-exponent)).half(), exponent


def largest(flat_D: Tensor, k: int) -> Tensor:
    """Places of the k elements of largest size, ascending; of equal ones the first: [k]. What is
    not finite is larger than all."""
    if not k:
        return torch.zeros(0, dtype=torch.int64)
    size_D = flat_D.abs().nan_to_num(nan=math.inf, posinf=math.inf)
    least = size_D.topk(k).values[-1]
    above = (size_D > least).nonzero().flatten()
    equal = (size_D == least).nonzero().flatten()[: k - len(above)]
    return torch.cat([above, equal]).sort().values


def _whole(values: Tensor, exponent: int) -> Tensor:
    """Values as they arrive, float32."""
    return torch.ldexp(values.double(), torch.tensor(exponent)).float()


def _spread(places: Tensor, values: Tensor, like: Params) -> Params:
    """0 but at these places: tensors as ``like``."""
    flat_D = torch.zeros(trees.size(like))
    flat_D[places] = values
    return {n: x.to(like[n].dtype) for n, x in trees.unflatten(flat_D, like).items()}
