"""Rules of operators that act on every element by itself.

Written with x' for a tangent of x and d for the derivative. Value and tangents of a product or a
sum go into one buffer; an activation writes over its input where nobody else reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forefed.gradients.dual.tensor import RULES, Dual, fresh, lifted, rule, take, tangents, value

aten = torch.ops.aten


@rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def add(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    """(a + b)' = a' + b'; a constant moves the value only."""
    if alpha != 1:
        b = b * alpha
    if isinstance(a, Dual) and isinstance(b, Dual):
        dims = max(a.dim(), b.dim())
        wide = torch.result_type(value(a), value(b))
        for x, y in ((a, b), (b, a)):
            if a is not b and x.shape == y.shape and x.dtype == wide:
                slices = take(x, torch.add)
                if slices is not None:
                    return fresh(slices.add_(y.slices))
        return fresh(lifted(a, dims) + lifted(b, dims))
    x, c = (a, b) if isinstance(a, Dual) else (b, a)
    slices = _own(x, c, torch.add)
    slices[0] += c
    return fresh(slices)


@rule(torch.sub, Tensor.sub, Tensor.__sub__, torch.subtract, Tensor.subtract)
def sub(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    """(a - b)' = a' - b'."""
    if isinstance(b, Dual) and not isinstance(a, Dual):
        return add(multiply(b, -alpha), a)
    if isinstance(b, Dual):
        return fresh(torch.sub(lifted(a, b.dim()), lifted(b, a.dim()), alpha=alpha))
    return add(a, b * -alpha)


@rule(torch.rsub, Tensor.__rsub__)
def rsub(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    return sub(b, a if alpha == 1 else a * alpha)


@rule(torch.mul, Tensor.mul, torch.multiply, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def multiply(a: Any, b: Any) -> Dual:
    """(a b)' = a' b + a b'."""
    if isinstance(a, Dual) and isinstance(b, Dual):
        a0, b0 = value(a), value(b)
        same = a is not b and a.shape == b.shape and a.dtype == b.dtype
        slices = take(a, torch.mul) if same else None
        if slices is not None:
            tangents(a).mul_(b0).addcmul_(a0, tangents(b))
            a0.mul_(b0)
            return fresh(slices)
        dims = max(a.dim(), b.dim())
        slices = lifted(a, dims) * b0
        slices[1:] += a0 * lifted(b, dims)[1:]
        return fresh(slices)
    x, c = (a, b) if isinstance(a, Dual) else (b, a)
    if isinstance(c, Tensor) and _fits(x, c):
        slices = take(x, torch.mul)
        if slices is not None:
            return fresh(slices.mul_(c))
    return fresh(lifted(x, c.dim() if isinstance(c, Tensor) else 0) * c)


@rule(torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide, Tensor.true_divide)
def divide(a: Any, b: Any) -> Dual:
    """q = a / b: q' = (a' - q b') / b."""
    if not isinstance(b, Dual):
        return fresh(lifted(a, b.dim() if isinstance(b, Tensor) else 0) / b)
    b0 = value(b)
    q0 = value(a) / b0
    slices = q0.new_empty(len(b.slices), *q0.shape)
    slices[0] = q0
    slices[1:] = -q0 * lifted(b, q0.dim())[1:]
    if isinstance(a, Dual):
        slices[1:] += lifted(a, q0.dim())[1:]
    slices[1:] /= b0
    return fresh(slices)


@rule(Tensor.__rtruediv__, Tensor.__rdiv__)
def divided_by(a: Any, b: Any) -> Dual:
    return divide(b, a)


@rule(torch.pow, Tensor.pow, Tensor.__pow__)
def power(x: Any, exponent: Any) -> Dual:
    """(x^n)' = n x^(n - 1) x', for a constant n."""
    if isinstance(exponent, Dual):
        return RULES[torch.exp](multiply(exponent, torch.log(x)))
    return unary(x, lambda x: torch.pow(x, exponent), lambda x, y: exponent * x ** (exponent - 1))


@rule(torch.neg, Tensor.neg, Tensor.__neg__, torch.negative, Tensor.negative)
def negative(x: Dual) -> Dual:
    return fresh(-x.slices)


@rule(Tensor.add_, Tensor.__iadd__)
def add_(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    return _write(a, add(a, b, alpha=alpha))


@rule(Tensor.sub_, Tensor.__isub__)
def sub_(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    return _write(a, sub(a, b, alpha=alpha))


@rule(Tensor.mul_, Tensor.__imul__)
def multiply_(a: Any, b: Any) -> Dual:
    return _write(a, multiply(a, b))


@rule(Tensor.div_, Tensor.__itruediv__)
def divide_(a: Any, b: Any) -> Dual:
    return _write(a, divide(a, b))


def unary(x: Dual, f: Callable[[Tensor], Tensor], df: Callable[[Tensor, Tensor], Tensor]) -> Dual:
    """y = f(x): y' = df(x, y) x'."""
    x0 = value(x)
    y0 = f(x0)
    slices = y0.new_empty(len(x.slices), *y0.shape)
    slices[0] = y0
    torch.mul(tangents(x), df(x0, y0), out=slices[1:])
    return fresh(slices)


UNARY: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    torch.exp: lambda x, y: y,
    torch.log: lambda x, y: 1 / x,
    torch.sqrt: lambda x, y: 0.5 / y,
    torch.rsqrt: lambda x, y: -0.5 * y / x,
    torch.reciprocal: lambda x, y: -y * y,
    torch.square: lambda x, y: 2 * x,
    torch.abs: lambda x, y: x.sign(),
    torch.sin: lambda x, y: x.cos(),
    torch.cos: lambda x, y: -x.sin(),
    torch.erf: lambda x, y: 2 / math.sqrt(math.pi) * torch.exp(-x * x),
}
for _f, _df in UNARY.items():

    def _unary_rule(x: Dual, _f: Any = _f, _df: Any = _df) -> Dual:
        return unary(x, _f, _df)

    rule(_f, getattr(Tensor, _f.__name__))(_unary_rule)


def activation(
    x: Dual,
    operator: Any,
    f: Callable[..., Any],
    backward: Callable[..., Any],
) -> Dual:
    """y = f(x) by elements: the Jacobian is diagonal, so the backward kernel is the forward one.

    The tangents come first: their kernel reads the value, which ``f`` may write over.
    """
    slices = take(x, operator)
    if slices is None:
        slices = torch.empty_like(x.slices, memory_format=torch.contiguous_format)
    backward(tangents(x), value(x), slices[1:])
    f(value(x), slices[0])
    return fresh(slices)


@rule(F.gelu)
def gelu(x: Dual, approximate: str = "none") -> Dual:
    return activation(
        x,
        F.gelu,
        lambda x, out: aten.gelu.out(x, approximate=approximate, out=out),
        lambda t, x, out: aten.gelu_backward.grad_input(
            t, x.expand_as(t), approximate=approximate, grad_input=out
        ),
    )


@rule(F.silu)
def silu(x: Dual, inplace: bool = False) -> Dual:
    return activation(
        x,
        F.silu,
        lambda x, out: aten.silu.out(x, out=out),
        lambda t, x, out: aten.silu_backward.grad_input(t, x.expand_as(t), grad_input=out),
    )


@rule(F.relu, torch.relu, Tensor.relu)
def relu(x: Dual, inplace: bool = False) -> Dual:
    return activation(
        x,
        F.relu,
        lambda x, out: aten.relu.out(x, out=out),
        lambda t, x, out: aten.threshold_backward.grad_input(t, x.expand_as(t), 0, grad_input=out),
    )


@rule(torch.tanh, Tensor.tanh, F.tanh)
def tanh(x: Dual) -> Dual:
    """y' = (1 - y^2) x'."""
    return _by_result(x, torch.tanh, aten.tanh_backward.grad_input)


@rule(torch.sigmoid, Tensor.sigmoid, F.sigmoid)
def sigmoid(x: Dual) -> Dual:
    """y' = y (1 - y) x'."""
    return _by_result(x, torch.sigmoid, aten.sigmoid_backward.grad_input)


def _by_result(x: Dual, f: Callable[..., Any], backward: Callable[..., Any]) -> Dual:
    """As ``activation``, for a kernel that reads the result instead of the argument."""
    slices = torch.empty_like(x.slices, memory_format=torch.contiguous_format)
    f(value(x), out=slices[0])
    backward(tangents(x), slices[0].expand_as(slices[1:]), grad_input=slices[1:])
    return fresh(slices)


def _own(x: Dual, other: Any, operator: Any) -> Tensor:
    """Slices of the shape and type of ``x`` combined with ``other``, to write into."""
    if not isinstance(other, Tensor) or _fits(x, other):
        slices = take(x, operator) if isinstance(other, Tensor) else None
        return x.slices.clone(memory_format=torch.contiguous_format) if slices is None else slices
    shape = torch.broadcast_shapes(x.shape, other.shape)
    dtype = torch.result_type(value(x), other)
    slices = torch.empty(len(x.slices), *shape, dtype=dtype, device=x.slices.device)
    return slices.copy_(lifted(x, len(shape)))


def _fits(x: Dual, other: Tensor) -> bool:
    """Does ``x`` combined with ``other`` have the shape and type of ``x``?"""
    return (
        torch.broadcast_shapes(x.shape, other.shape) == x.shape
        and torch.result_type(value(x), other) == x.dtype
    )


def _write(target: Any, result: Dual) -> Dual:
    """``target`` with the result written into it; a plain tensor cannot take tangents."""
    if not isinstance(target, Dual):
        raise TypeError("an in-place operator would drop the tangents of its argument")
    if result.slices.data_ptr() != target.slices.data_ptr():
        target.slices.copy_(result.slices)
    target.taken = None
    return target
