"""Rules of matrix products: (A B)' = A' B + A B'.

A frozen linear layer is a linear map, so value and tangents go through it as one matrix product of
(1 + K) times as many rows, which reads the weights once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forefed.gradients.dual.tensor import Dual, drop, first, fresh, lifted, rule, value


@rule(F.linear)
def linear(x: Any, weight: Any, bias: Any = None) -> Dual:
    """y = x W^T + b: y' = x' W^T + x W'^T + b'."""
    weight0 = value(weight)
    if isinstance(x, Dual):
        slices = F.linear(x.slices, weight0)
    else:
        like = first(weight, bias)
        y0 = F.linear(x, weight0)
        slices = y0.new_zeros(len(like.slices), *y0.shape)
        slices[0] = y0
    if isinstance(weight, Dual):
        x_TI = value(x).reshape(-1, weight.shape[1])
        for out, tangent_OI in zip(slices[1:], weight.slices[1:], strict=True):
            out.view(-1, weight.shape[0]).addmm_(x_TI, tangent_OI.mT)
    if isinstance(bias, Dual):
        slices += lifted(bias, slices.dim() - 1)
    elif bias is not None:
        slices[0] += bias
    drop(x, F.linear)
    return fresh(slices)


def bilinear(product: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Dual:
    """Any product that is linear in each argument, one tangent after the other."""
    y0 = product(value(a), value(b))
    slices = y0.new_empty(len(first(a, b).slices), *y0.shape)
    slices[0] = y0
    for k in range(1, len(slices)):
        if isinstance(a, Dual) and isinstance(b, Dual):
            slices[k] = product(a.slices[k], value(b))
            slices[k] += product(value(a), b.slices[k])
        elif isinstance(a, Dual):
            slices[k] = product(a.slices[k], b)
        else:
            slices[k] = product(a, b.slices[k])
    return fresh(slices)


@rule(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def matmul(a: Any, b: Any) -> Dual:
    if isinstance(a, Dual) and not isinstance(b, Dual) and b.dim() == 2 and a.dim() > 1:
        return fresh(torch.matmul(a.slices, b))  # a frozen weight: one product
    return bilinear(torch.matmul, a, b)


@rule(torch.bmm, Tensor.bmm)
def bmm(a: Any, b: Any) -> Dual:
    return bilinear(torch.bmm, a, b)


@rule(torch.mm, Tensor.mm)
def mm(a: Any, b: Any) -> Dual:
    return matmul(a, b)


@rule(torch.addmm, Tensor.addmm)
def addmm(c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Dual:
    """c + a b (GPT-2's Conv1D)."""
    return _plus(matmul, c, a, b, beta, alpha)


@rule(torch.baddbmm, Tensor.baddbmm)
def baddbmm(c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Dual:
    return _plus(bmm, c, a, b, beta, alpha)


def _plus(product: Callable[..., Any], c: Any, a: Any, b: Any, beta: float, alpha: float) -> Dual:
    y = product(a, b) if isinstance(a, Dual) or isinstance(b, Dual) else value(a) @ value(b)
    if alpha != 1:
        y = y * alpha
    result: Dual = y + (c if beta == 1 else c * beta)
    return result


@rule(torch.einsum)
def einsum(equation: str, *operands: Any) -> Any:
    """Multilinear: the sum over the operands of the product with one of them replaced."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    y0 = torch.einsum(equation, *map(value, operands))
    like = first(*operands)
    slices = y0.new_zeros(len(like.slices), *y0.shape)
    slices[0] = y0
    for i, x in enumerate(operands):
        if isinstance(x, Dual):
            for k in range(1, len(slices)):
                replaced = [*map(value, operands)]
                replaced[i] = x.slices[k]
                slices[k] += torch.einsum(equation, *replaced)
    return fresh(slices)
