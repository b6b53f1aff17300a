"""Rule of scaled dot-product attention, a few heads and query rows at a time.

Derivation, for one head: s = a q k^T + mask, p = softmax(s), o = p v. Then
s' = a (q' k^T + q k'^T) and, because p' = p (s' - sum p s'),

    o' = (p s') v - (sum p s') o + p v'.

Only s, p and s' of the rows at work exist at any time, so memory grows with the sequence and not
with its square. No kernel of torch has this derivative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forefed.gradients.dual.tensor import Dual, first, fresh, rule
from forefed.gradients.dual.tensor import value as value_of

SCORES = 2**17
"""Elements of s at work: half a megabyte, and as much for s' of each tangent."""


@rule(F.scaled_dot_product_attention)
def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Dual:
    """o [B, H, L, V] of q [B, H, L, E], k [B, G, S, E], v [B, G, S, V]; G divides H with GQA."""
    if dropout_p > 0:
        raise TypeError("attention with dropout has no directional derivative; eval() the model")
    if isinstance(attn_mask, Dual):
        raise TypeError("the attention mask depends on a perturbed parameter")
    if query.dim() != 4:
        return _with_four_axes(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    batch, heads, rows, _ = query.shape
    columns, width = key.shape[-2], value.shape[-1]
    group = heads // key.shape[1]
    like = first(query, key, value)
    # [1 + K, B, L, H, V]: the layout in which models read it, so that no copy follows
    out = torch.empty(
        len(like.slices), batch, rows, heads, width, dtype=like.dtype, device=like.device
    ).transpose(2, 3)
    mask = _broadcast(attn_mask, (batch, heads, rows, columns))
    at_once, rows_at_once = _blocks(heads, rows, columns, group)
    for b in range(batch):
        for h in range(0, heads, at_once):
            hs = slice(h, h + at_once)
            gs = slice(h // group, (h + at_once - 1) // group + 1)
            q, k, w = _part(query, b, hs), _part(key, b, gs), _part(value, b, gs)
            for i in range(0, rows, rows_at_once):
                stop = min(i + rows_at_once, rows)
                seen = min(stop, columns) if is_causal else columns
                block = None if mask is None else mask[b, hs, i:stop, :seen]
                _attend(
                    out[:, b, hs, i:stop],
                    q[:, :, i:stop],
                    k[:, :, :seen],
                    w[:, :, :seen],
                    block,
                    i if is_causal else None,
                    scale,
                )
    return fresh(out)


def _attend(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal_from: int | None,
    scale: float,
) -> None:
    """One block into ``out`` [1 + K, h, l, V]; q, k, v have 1 slice where they have no tangents.

    The heads h of q are a multiple of those of k and v (1 of them where there are several).
    """
    q0 = q[0] * scale
    k0_t = k[0].mT
    p = _softmax(_product(q0, k0_t), mask, causal_from)
    p_low = p.to(out.dtype)
    o0 = _product(p_low, v[0])
    out[0] = o0
    for j in range(1, len(out)):
        o = out[j]
        ps = None  # p s'
        if len(q) > 1:
            ps = _product(q[j] * scale, k0_t)
        if len(k) > 1:
            right = _product(q0, k[j].mT)
            ps = right if ps is None else ps.add_(right)
        if ps is None:
            o.zero_()
        else:
            ps = ps.mul_(p) if ps.dtype == p.dtype else ps * p
            o.copy_(_product(ps.to(out.dtype), v[0]))
            o -= ps.sum(-1, keepdim=True).to(out.dtype) * o0
        if len(v) > 1:
            o += _product(p_low, v[j])


def _softmax(s: Tensor, mask: Tensor | None, causal_from: int | None) -> Tensor:
    """Softmax of masked scores, in float32 or wider; rows that see nothing are zero."""
    s = s.to(torch.promote_types(s.dtype, torch.float32))
    if mask is not None:
        s = s.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else s.add_(mask)
    if causal_from is not None:
        rows, columns = s.shape[-2:]
        later = torch.ones(rows, columns, dtype=torch.bool, device=s.device)
        s = s.masked_fill_(later.triu_(causal_from + 1), -math.inf)
    p = torch.softmax(s, -1, out=s) if s.is_contiguous() else torch.softmax(s, -1)
    if mask is not None and mask.dtype == torch.bool:
        p = p.masked_fill_(~mask.any(-1, keepdim=True), 0.0)
    return p


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a [h, l, x] b [g, x, y] with g = h, or one g for all h."""
    if len(b) == len(a):
        return torch.bmm(a, b)
    return torch.matmul(a.reshape(-1, a.shape[-1]), b[0]).view(*a.shape[:-1], b.shape[-1])


def _part(x: Any, b: int, heads: slice) -> Tensor:
    """[1 + K or 1, h, L, E] of one example's heads."""
    return x.slices[:, b, heads] if isinstance(x, Dual) else x[b, heads][None]


def _blocks(heads: int, rows: int, columns: int, group: int) -> tuple[int, int]:
    """Heads and query rows at a time. With grouped queries: the heads of one group, or one."""
    rows_at_once = max(1, min(rows, SCORES // columns))
    heads_at_once = max(1, SCORES // (rows_at_once * columns))
    if group == 1:
        return min(heads, heads_at_once), rows_at_once
    return max(
        d for d in range(1, group + 1) if group % d == 0 and d <= heads_at_once
    ), rows_at_once


def _broadcast(mask: Any, shape: tuple[int, ...]) -> Tensor | None:
    return None if mask is None else value_of(mask).expand(shape)


def _with_four_axes(
    q: Any, k: Any, v: Any, mask: Any, is_causal: bool, scale: float | None, gqa: bool
) -> Dual:
    """Attention of [..., L, E] with any number of leading axes."""
    lead = q.shape[:-2]

    def flat(x: Any) -> Any:
        return x.reshape(1, -1, *x.shape[-2:])

    if mask is not None:
        mask = flat(mask.expand(*lead, *mask.shape[-2:]))
    out = attention(flat(q), flat(k), flat(v), mask, 0.0, is_causal, scale, gqa)
    result: Dual = out.reshape(*lead, *out.shape[-2:])
    return result
