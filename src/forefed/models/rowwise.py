"""Attention whose backward pass keeps q, k and v only, and works on a few query rows at a time.

torch's fused attention keeps its output besides; on a CPU in bfloat16 its backward pass takes three
times as long as its forward one. Here the probabilities p of some rows are computed again:

    p = softmax(a q k^T + mask),   o = p v,
    dv = p^T do,   ds = p (do v^T) - p sum(p do v^T),   dq = a ds k,   dk = a ds^T q.

Axes: N pairs of an example and a head of k, R heads of q that share it, L query rows, C those at
work, S columns, E widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

SCORES = 2**18
"""Elements of p at work: a megabyte, which stays in the cache."""


class RowwiseAttention(TorchFunctionMode):
    """While open, ``scaled_dot_product_attention`` is the one of this file where it can be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function of this name, exact up to rounding; torch's own where a case is not here."""
    heads_fit = query.dim() == 4 and query.shape[1] % key.shape[1] == 0
    trained_mask = attn_mask is not None and attn_mask.requires_grad
    if dropout_p or trained_mask or not heads_fit or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    result: Tensor = _Rows.apply(query, key, value, attn_mask, is_causal, scale)
    return result


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.is_causal, ctx.scale = is_causal, scale
        batch, heads, rows, _ = query.shape
        # the layout in which models read it, so that no copy follows
        out = query.new_empty(batch, rows, heads, value.shape[-1]).transpose(1, 2)
        v_NSE = value.flatten(0, 1)
        for at, seen, _, p in _probabilities(query, key, mask, is_causal, scale):
            out[:, :, at] = _whole(torch.bmm(p.to(v_NSE.dtype), v_NSE[:, :seen]), query, at)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        k_NSE, v_NSE = key.flatten(0, 1), value.flatten(0, 1)
        wide = torch.promote_types(key.dtype, torch.float32)
        dq = torch.empty_like(query)
        dk_NSE, dv_NSE = (torch.zeros_like(x, dtype=wide) for x in (k_NSE, v_NSE))
        for at, seen, q, p in _probabilities(query, key, mask, ctx.is_causal, ctx.scale):
            do = _part(grad, key, at)
            dv_NSE[:, :seen] += torch.bmm(p.to(do.dtype).mT, do)
            ds = torch.bmm(do, v_NSE[:, :seen].mT).to(wide).mul_(p)
            ds = ds.addcmul_(p, ds.sum(-1, keepdim=True), value=-1).mul_(ctx.scale).to(q.dtype)
            dq[:, :, at] = _whole(torch.bmm(ds, k_NSE[:, :seen]), query, at)
            dk_NSE[:, :seen] += torch.bmm(ds.mT, q)
        dk, dv = dk_NSE.view(key.shape).to(key.dtype), dv_NSE.view(value.shape).to(value.dtype)
        return dq, dk, dv, None, None, None


def _probabilities(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
    """By parts of the rows: which, how many columns they see, q [N, R C, E] and p [N, R C, S]."""
    batch, heads, rows, _ = query.shape
    columns, k_NSE = key.shape[2], key.flatten(0, 1)
    if mask is not None:
        mask = mask.expand(batch, heads, rows, columns)
    step = max(1, SCORES // (batch * heads * columns))
    for start in range(0, rows, step):
        at = slice(start, min(start + step, rows))
        seen = min(at.stop, columns) if is_causal else columns
        q = _part(query, key, at)
        s = torch.bmm(q, k_NSE[:, :seen].mT)
        s = s.to(torch.promote_types(s.dtype, torch.float32)).mul_(scale)
        some = None if mask is None else mask[:, :, at, :seen]
        yield at, seen, q, _softmax(s, some, at if is_causal else None)


def _softmax(s: Tensor, mask_BHCS: Tensor | None, causal: slice | None) -> Tensor:
    """In place; rows that see nothing are zero."""
    blind = None
    if causal is not None:
        later = torch.ones(causal.stop - causal.start, s.shape[2], dtype=torch.bool)
        later = later.triu_(causal.start + 1).to(s.device)
        s.view(len(s), -1, *later.shape).masked_fill_(later, -math.inf)
    if mask_BHCS is not None and mask_BHCS.dtype == torch.bool:
        seen = mask_BHCS.reshape(s.shape)
        s.masked_fill_(~seen, -math.inf)
        blind = ~seen.any(-1, keepdim=True)
    elif mask_BHCS is not None:
        s += mask_BHCS.reshape(s.shape)
    s = torch.softmax(s, -1, out=s)
    return s if blind is None else s.masked_fill_(blind, 0.0)


def _part(x: Tensor, key: Tensor, at: slice) -> Tensor:
    """Rows of [B, H, L, E] as [N, R C, E]."""
    return x[:, :, at].reshape(key.shape[0] * key.shape[1], -1, x.shape[-1])


def _whole(x: Tensor, query: Tensor, at: slice) -> Tensor:
    """Back to [B, H, C, E]."""
    return x.view(*query.shape[:2], at.stop - at.start, x.shape[-1])
