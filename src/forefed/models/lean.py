"""Layers of a block's second run that keep their input alone (``models.structured``).

Each has the layer's own result, or NaN where nobody reads it, and the derivative of the layer.

Axes: I inputs and O outputs of a matrix, r its rank, T tokens, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from forefed.models.attach import ADAPTER_NAME
from forefed.models.blocks import linear_modules
from forefed.models.functional import KeyedDropout
from forefed.models.quantised import QuantisedLinear

TOKENS = 128
"""At a time: enough for a matrix product at full speed."""

Forward = Callable[..., Any]


def adapted(layer: Any, forward: Forward, unread: bool, x: Tensor, *args: Any, **kw: Any) -> Any:
    a, b = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    if args or kw or not any(t.requires_grad for t in (x, a, b)):
        return forward(x, *args, **kw)
    return _Adapted.apply(x, a, b, layer, forward, unread)


def few_tokens(
    forward: Forward, trained: Sequence[Tensor], unread: bool, x: Tensor, *args: Any, **kw: Any
) -> Any:
    if args or kw:
        return forward(x, *args, **kw)
    return _Tokens.apply(x, forward, unread, *trained)


def some_at_a_time(forward: Forward, x: Tensor) -> Tensor:
    """A module that treats every token by itself, without a gradient."""
    x_TH = x.reshape(-1, x.shape[-1])
    y_TH = torch.empty_like(x_TH)
    for start in range(0, len(x_TH), TOKENS):
        y_TH[start : start + TOKENS] = forward(x_TH[start : start + TOKENS][None])[0]
    return y_TH.view(x.shape)


def nothing(layer: Any, x: Tensor) -> Tensor:
    """NaN in place of a frozen layer's product, with the derivative of the product."""
    result: Tensor = _Left.apply(x, layer)
    return result


class _Left(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return _nan(x, _outputs(layer))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _by_input(ctx.layer, grad), None


def _nan(x: Tensor, width: int) -> Tensor:
    return x.new_full((*x.shape[:-1], width), math.nan)


def _outputs(layer: Any) -> int:
    width = getattr(layer, "out_features", None)
    return int(layer.nf if width is None else width)  # Conv1D has nf


def _by_input(layer: Any, grad: Tensor) -> Tensor:
    """g W of a frozen linear layer."""
    if isinstance(layer, QuantisedLinear):
        return layer.by_input(grad)
    transposed = not isinstance(layer, nn.Linear)  # GPT-2's Conv1D
    result: Tensor = grad @ (layer.weight.T if transposed else layer.weight)
    return result


def _dropped(dropout: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What the adapter's dropout multiplies its input by, [T, I]; None: nothing."""
    if not isinstance(dropout, KeyedDropout):
        return None
    ones = torch.ones_like(x, dtype=dtype)
    mask: Tensor = dropout(ones)
    return None if mask is ones else mask.reshape(-1, x.shape[-1])


def is_adapted(module: Any) -> bool:
    """A LoRA layer as it is: with nothing between A and B, and one adapter."""
    if [*getattr(module, "lora_A", {})] != [ADAPTER_NAME]:
        return False
    plain = _is_product(module.get_base_layer())
    return plain and not module.lora_A[ADAPTER_NAME]._forward_hooks and not module.lora_variant


def _is_product(module: nn.Module) -> bool:
    """A matrix of its own; some of PEFT's wrappers are linear by their class."""
    linear = linear_modules(module).get("") is module and not hasattr(module, "base_layer")
    return linear or isinstance(module, QuantisedLinear)


def products(block: nn.Module) -> dict[str, nn.Module]:
    """Adapted layers, and frozen matrices outside of them, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in block.named_modules():
        within = any(name.startswith(f"{n}.") for n in found)
        beside = any(part.startswith(("lora_", "tinylora_")) for part in name.split("."))
        if not within and not beside and (is_adapted(module) or _is_product(module)):
            found[name] = module
    return found


class _Tokens(torch.autograd.Function):
    """A module that treats every token by itself: keeps its input, runs again for a few tokens."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Forward, unread: bool, *trained: Tensor) -> Tensor:
        ctx.run = forward
        ctx.save_for_backward(x, *trained)
        return _nan(x, x.shape[-1]) if unread else forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *trained = ctx.saved_tensors
        sums: list[Tensor | None] = [None] * len(trained)
        x_TH, g_TH = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        dx_TH = torch.empty_like(x_TH)
        for start in range(0, len(x_TH), TOKENS):
            at = slice(start, start + TOKENS)
            with torch.enable_grad():
                # sliced first: of [1, T, H] torch would not make one matrix, and copy the weights
                few = x_TH[at][None].detach().requires_grad_()
                y = ctx.run(few)
            found = torch.autograd.grad(y, [few, *trained], g_TH[at][None], allow_unused=True)
            del y
            dx_TH[at] = found[0][0]
            for i, g in enumerate(found[1:]):
                before = sums[i]
                sums[i] = g if before is None else before if g is None else before.add_(g)
        return dx_TH.view(x.shape), None, None, *sums


class _Adapted(torch.autograd.Function):
    """PEFT's LoRA layer, which keeps its input alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a_rI: Tensor, b_Or: Tensor, layer: Any, forward: Forward, unread: bool
    ) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, a_rI, b_Or)
        return _nan(x, len(b_Or)) if unread else forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a_rI, b_Or = ctx.saved_tensors
        layer, scale = ctx.layer, ctx.layer.scaling[ADAPTER_NAME]
        mask = _dropped(layer.lora_dropout[ADAPTER_NAME], x, a_rI.dtype)
        dx, da_rI, db_Or = None, torch.zeros_like(a_rI), torch.zeros_like(b_Or)
        x_TI, g_TO = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[0]:
            dx = _by_input(layer.get_base_layer(), g_TO)
        for start in range(0, len(x_TI), TOKENS):
            at = slice(start, start + TOKENS)
            kept = x_TI[at].to(a_rI.dtype)
            if mask is not None:
                kept = kept * mask[at]
            g = g_TO[at].to(b_Or.dtype) * scale
            h_Tr, dh_Tr = kept @ a_rI.T, g @ b_Or
            db_Or.addmm_(g.T, h_Tr)
            da_rI.addmm_(dh_Tr.T, kept)
            if dx is not None:
                beside = dh_Tr @ a_rI
                dx[at] += (beside if mask is None else beside * mask[at]).to(dx.dtype)
        return (None if dx is None else dx.view(x.shape)), da_rI, db_Or, None, None, None
