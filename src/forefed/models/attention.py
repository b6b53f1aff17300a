"""Attention in float32 inside a model of fewer bits, where this machine computes it faster so.

On CPUs torch's fused attention has a backward pass for bfloat16 and float16 that takes 3 to 9 times
as long as the one for float32 (torch 2.13, AVX512-BF16: 7.0 and 1.6 ms for 8 texts of 32 tokens),
a third of a training step of a small encoder. Matrix products are faster in bfloat16, so the number
format is the kernel's, not the model's: queries, keys and values are widened for attention alone.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from forefed.models.place import quiet

Attention = Literal["weights", "float32"]
NAME = "forefed_float32"
"""Of our attention among those that transformers knows."""
GAIN = 1.25
"""So many times as fast it must be: what is measured is milliseconds."""


def attend_in(model: Any, asked: Literal["auto", "weights", "float32"]) -> Attention:
    """Sets the number format of a model's attention, in place; ``auto``: the faster one.

    Returns:
        What it computes in now: "weights", the format of its weights, also where the model has an
        attention of its own, or weights of float32 and wider.
    """
    weight = next(model.parameters())
    narrow = weight.dtype in (torch.bfloat16, torch.float16)
    if not narrow or getattr(model.config, "_attn_implementation", "") != "sdpa":
        return "weights"
    if asked == "auto":
        inner = model.config.get_text_config()
        heads = int(getattr(inner, "num_attention_heads", 8))
        width = int(getattr(inner, "head_dim", None) or inner.hidden_size // heads)
        asked = faster(weight.dtype, weight.device.type, heads, width)
    if asked == "float32":
        _register()
        with quiet():
            model.set_attn_implementation(NAME)
    return attention_of(model)


def attention_of(model: Any) -> Attention:
    """What a model's attention computes in."""
    there = getattr(model.config, "_attn_implementation", "")
    return "float32" if there == NAME else "weights"


@lru_cache(maxsize=8)
def faster(dtype: torch.dtype, device: str, heads: int, width: int) -> Attention:
    """Which format has the faster forward and backward pass, measured (some 20 ms) on a CPU.

    Args:
        width: of one head.
    """
    if device != "cpu":
        return "weights"
    shape = (2, heads, 32, width)
    q, k, v = (torch.full(shape, 0.1 * (i + 1), dtype=dtype, requires_grad=True) for i in range(3))
    g, mask = torch.ones(shape, dtype=dtype), torch.ones(2, 1, 32, 32, dtype=torch.bool)

    def seconds(kind: torch.dtype) -> float:
        best = float("inf")
        for _ in range(5):  # of which the first warms up
            started = time.perf_counter()
            with torch.enable_grad():
                wide = q.to(kind), k.to(kind), v.to(kind)
                out = F.scaled_dot_product_attention(*wide, attn_mask=mask).to(dtype)
                torch.autograd.grad(out, (q, k, v), g)
            best = min(best, time.perf_counter() - started)
        return best

    return "float32" if GAIN * seconds(torch.float32) < seconds(dtype) else "weights"


@lru_cache(maxsize=1)
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _widened)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _widened(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **how: Any,
) -> tuple[Tensor, None]:
    """transformers' attention by torch's kernel, in float32."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.float()
    if how.get("position_bias") is not None:
        how["position_bias"] = how["position_bias"].float()
    wide = query.float(), key.float(), value.float()
    out, nothing = sdpa_attention_forward(module, *wide, attention_mask, **how)
    return out.to(query.dtype), nothing
