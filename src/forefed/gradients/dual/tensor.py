"""A tensor that carries its value and K tangents through unmodified model code.

Source: dual numbers (Baydin et al., arXiv 2202.08587), over torch's ``__torch_function__``
protocol. ``torch.func.jvp`` does the same for single operators; here a rule sees a whole operator
of a language model (a frozen linear layer, attention, a LayerNorm), so that value and tangents
share one matrix product, fused kernels take the place of chains of small ones, and attention is
computed in blocks. SDPA, which has no forward derivative in torch (pytorch#117629), has one here.

Legend: K tangents. ``slices`` [1 + K, *shape] is one buffer: slice 0 is the value, the others are
the tangents. So a linear map of x is that map of the buffer, in one call.

A tensor that no perturbed parameter has touched yet is a plain tensor: tangents are absent, not
zero, and everything before the first perturbed parameter costs one inference.

The classification head may have its exact gradient from the same pass: a tensor that depends on
one with ``requires_grad`` has a ``tracked`` value beside its slices, on which autograd works as
ever. The head reads little, so computing its value twice costs nothing to speak of.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from forefed.core.errors import UserError

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
"""Operator -> its rule: called with the operator's own arguments, some of them ``Dual``."""
METADATA: set[Any] = set()
"""Operators that ask about shape, type or device and read no values."""


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


@dataclass
class Pass:
    """What happened during one forward pass, and what it may do.

    ``fallbacks`` counts operators without a rule, ``used`` those with one. An operator in ``keep``
    does not write over its input (see ``take``). ``saved_bytes`` is what autograd may hold for the
    tracked values.
    """

    keep: set[Any] = field(default_factory=set)
    fallbacks: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    saved_bytes: int = 0


_PASS: ContextVar[Pass] = ContextVar("dual_pass")


class ReadAgain(Exception):
    """A tensor was read after an operator had written over it; ``operator`` must keep its input."""

    def __init__(self, operator: Any):
        self.operator = operator


@contextmanager
def recording(record: Pass) -> Iterator[Pass]:
    """Everything dual inside is counted in ``record``."""
    token = _PASS.set(record)
    try:
        yield record
    finally:
        _PASS.reset(token)


class Dual(Tensor):
    """A tensor with K tangents; see the module's text. Never leaves the engine that made it."""

    slices: Tensor
    tracked: Tensor | None
    spare: bool
    taken: Any

    @staticmethod
    def __new__(cls, slices: Tensor, tracked: Tensor | None = None, spare: bool = False) -> Dual:
        return Tensor._make_wrapper_subclass(
            cls,
            slices.shape[1:],
            strides=slices.stride()[1:],
            dtype=slices.dtype,
            device=slices.device,
        )

    def __init__(self, slices: Tensor, tracked: Tensor | None = None, spare: bool = False):
        self.slices = slices
        self.tracked = tracked
        self.spare = spare
        """Freshly computed, and not read yet: the first reader may write over it (``take``)."""
        self.taken = None

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Dual({tuple(self.slices.shape[1:])}, tangents={len(self.slices) - 1})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        duals = list(_duals(args, kwargs))
        for x in duals:
            if x.taken is not None:
                raise ReadAgain(x.taken)
        if not (torch.is_grad_enabled() and _tracked(args, kwargs)):
            with torch.no_grad():
                return _apply(func, args, kwargs, duals)
        tracked = func(*_map(args, _tracked_value), **_map(kwargs, _tracked_value))
        _PASS.get().saved_bytes += sum(y.nbytes for y in _tensors(tracked))
        for x in duals:  # autograd may have saved it
            x.spare = False
        with torch.no_grad():
            result = _apply(func, _map(args, _detached), _map(kwargs, _detached), duals)
        return _attach(result, tracked)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} reached a dual tensor past its rules")


def take(x: Dual, operator: Any) -> Tensor | None:
    """The slices of ``x`` to write over, if ``x`` was freshly computed and never read; else None.

    The first reader of a linear layer's output is its activation, or a sum, and nobody looks at
    the output again: that is so in most model families, and cannot be known. So it is assumed,
    checked (whoever reads the tensor again raises ``ReadAgain``), and in that case the engine
    repeats the pass with the operator in ``Pass.keep``.
    """
    if not x.spare or operator in _PASS.get().keep or not x.slices.is_contiguous():
        return None
    x.taken = operator
    return x.slices


def drop(x: Any, operator: Any) -> None:
    """Frees what the operator has just read, on the same assumption and with the same check.

    Python variables of the model's code keep an activation alive longer than anybody needs it.
    """
    if isinstance(x, Dual) and x.spare and operator not in _PASS.get().keep:
        x.taken = operator
        x.slices = x.slices.new_empty(0)


def value(x: Any) -> Any:
    """The value of a dual tensor (a view); anything else as it is."""
    return x.slices[0] if isinstance(x, Dual) else x


def tangents(x: Dual) -> Tensor:
    """[K, *shape], a view."""
    return x.slices[1:]


def lifted(x: Dual, dims: int) -> Tensor:
    """The slices, with ones behind the first axis so that values of ``dims`` axes broadcast."""
    missing = dims + 1 - x.slices.dim()
    if missing <= 0:
        return x.slices
    return x.slices.reshape(len(x.slices), *(1,) * missing, *x.slices.shape[1:])


def slices_of(x: Any, like: Dual) -> Tensor:
    """The slices of any tensor; a plain one has zero tangents."""
    if isinstance(x, Dual):
        return x.slices
    slices = x.new_zeros(len(like.slices), *x.shape)
    slices[0] = x
    return slices


def fresh(slices: Tensor) -> Dual:
    """A newly computed buffer as a dual tensor."""
    return Dual(slices, spare=True)


def first(*xs: Any) -> Dual:
    """The first dual tensor among the arguments of a rule."""
    return next(x for x in xs if isinstance(x, Dual))


def name_of(operator: Any) -> str:
    """``add``, ``scaled_dot_product_attention``, ``Tensor.fill_``."""
    name = getattr(operator, "__name__", str(operator))
    if name == "__get__":  # a property
        name = getattr(getattr(operator, "__self__", None), "__name__", name)
    return str(name)


def _apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], duals: list[Dual]) -> Any:
    known = RULES.get(func)
    if known is None:
        result = _fall_back(func, args, kwargs, duals)
    else:
        _PASS.get().used[name_of(func)] += 1
        result = known(*args, **kwargs)
    for x in duals:
        if result is not x:
            x.spare = False
    return result


def _fall_back(func: Any, args: Any, kwargs: Any, duals: list[Dual]) -> Any:
    """``torch.func.jvp`` of this one operator, once per tangent; counted."""
    name = name_of(func)
    if (name.endswith("_") and not name.endswith("__")) or name.startswith("__i"):
        raise UserError(_no_rule(name, "it writes into its input"))

    def of_values(*values: Tensor) -> Any:
        given = iter(values)
        return func(*_map(args, _next_of(given)), **_map(kwargs, _next_of(given)))

    values = tuple(value(x) for x in duals)
    plain = of_values(*values)
    outputs = plain if isinstance(plain, tuple | list) else (plain,)
    if not any(isinstance(y, Tensor) and y.is_floating_point() for y in outputs):
        return plain  # indices, comparisons, numbers: nothing to differentiate
    _PASS.get().fallbacks[name] += 1
    pieces = []
    for k in range(1, len(duals[0].slices)):
        along = tuple(x.slices[k] for x in duals)
        try:
            pieces.append(torch.func.jvp(of_values, values, along)[1])
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().split("\n", 1)[0][:200]
            raise UserError(_no_rule(name, f"torch has no forward derivative: {reason}")) from error
    if isinstance(plain, Tensor):
        return Dual(torch.stack([plain, *pieces]))
    return type(plain)(
        Dual(torch.stack([y, *(p[i] for p in pieces)])) if y.is_floating_point() else y
        for i, y in enumerate(plain)
    )


def _no_rule(name: str, why: str) -> str:
    return (
        f"forward-mode differentiation of operator '{name}' in module '{_module()}': no rule here, "
        f"and {why}. Train later units only (adapter.layers = 'last:N'), or use engine.kind = "
        "'checkpointed' or 'backprop'"
    )


def _module() -> str:
    """The innermost module that is running, by its name in the outermost one (for messages)."""
    frame, running = sys._getframe(), []
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            running.append(owner)
        frame = frame.f_back  # type: ignore[assignment]
    if not running:
        return "?"
    names = {id(module): name for name, module in running[-1].named_modules()}
    return names.get(id(running[0])) or type(running[0]).__name__


def _duals(args: Any, kwargs: Any) -> Iterator[Dual]:
    for x in (*args, *kwargs.values()):
        if isinstance(x, Dual):
            yield x
        elif isinstance(x, tuple | list):
            yield from (y for y in x if isinstance(y, Dual))


def _tracked(args: Any, kwargs: Any) -> bool:
    """Does an argument depend on a tensor whose gradient is wanted?"""
    for x in (*args, *kwargs.values()):
        for y in x if isinstance(x, tuple | list) else (x,):
            if isinstance(y, Dual):
                if y.tracked is not None:
                    return True
            elif isinstance(y, Tensor) and y.requires_grad:
                return True
    return False


def _map(args: Any, function: Callable[[Any], Any]) -> Any:
    """The function on every tensor among the arguments, one level deep."""
    if isinstance(args, dict):
        return {name: _map_one(x, function) for name, x in args.items()}
    return tuple(_map_one(x, function) for x in args)


def _map_one(x: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(x, tuple | list) and any(isinstance(y, Tensor) for y in x):
        return type(x)(function(y) for y in x)
    return function(x) if isinstance(x, Tensor) else x


def _next_of(given: Iterator[Tensor]) -> Callable[[Any], Any]:
    return lambda x: next(given) if isinstance(x, Dual) else x


def _tracked_value(x: Any) -> Any:
    if not isinstance(x, Dual):
        return x
    if x.tracked is None:  # a copy: a view that autograd saves would hold all slices
        x.tracked = x.slices[0].clone()
        _PASS.get().saved_bytes += x.tracked.nbytes
    return x.tracked


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _detached(x: Any) -> Any:
    return x if isinstance(x, Dual) else x.detach()


def _attach(result: Any, tracked: Any) -> Any:
    """The result of a rule with its values as autograd knows them."""
    if isinstance(result, Dual):
        return Dual(result.slices, tracked)
    if isinstance(result, tuple | list):
        return type(result)(_attach(r, t) for r, t in zip(result, tracked, strict=True))
    return tracked


def _getters(*names: str) -> list[Any]:
    return [getattr(Tensor, name).__get__ for name in names]


METADATA.update(
    [
        *_getters("shape", "dtype", "device", "ndim", "layout", "is_leaf", "is_cuda", "is_mps"),
        *_getters("is_sparse", "is_quantized", "requires_grad", "is_cpu", "is_meta"),
        *_getters("is_nested", "itemsize", "nbytes", "grad_fn"),
        *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.stride),
        *(Tensor.is_contiguous, Tensor.is_floating_point, Tensor.is_complex, Tensor.get_device),
        *(Tensor.element_size, Tensor.__len__, Tensor.__repr__, Tensor.is_signed),
        *(torch.is_floating_point, torch.is_complex, torch.numel, Tensor.__hash__),
        *(Tensor.storage_offset, torch.is_same_size),
    ]
)
