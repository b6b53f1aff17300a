"""Rules of operators that are linear in a tensor: views, sums, gathers, conversions.

A linear map of x is the same map of every slice. Dimensions are counted from the end, where the
axis of the slices does not disturb.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forefed.gradients.dual.tensor import Dual, first, fresh, lifted, rule, slices_of, value


def _sizes(sizes: Sequence[Any]) -> tuple[int, ...]:
    """``(2, 3)`` or ``((2, 3),)`` as ``(2, 3)``."""
    listed = len(sizes) == 1 and isinstance(sizes[0], tuple | list | torch.Size)
    return tuple(sizes[0] if listed else sizes)


def from_end(dim: int, dims: int) -> int:
    return dim if dim < 0 else dim - dims


@rule(Tensor.view)
def view(x: Dual, *sizes: Any) -> Dual:
    if isinstance(sizes[0], torch.dtype):
        raise TypeError("a dual tensor cannot be read as another dtype")
    return Dual(x.slices.view(len(x.slices), *_sizes(sizes)))


@rule(Tensor.reshape, torch.reshape)
def reshape(x: Dual, *sizes: Any, shape: Any = None) -> Dual:
    return Dual(x.slices.reshape(len(x.slices), *_sizes(sizes if shape is None else shape)))


@rule(Tensor.view_as, Tensor.reshape_as)
def reshape_as(x: Dual, other: Tensor) -> Dual:
    return reshape(x, *other.shape)


@rule(Tensor.permute, torch.permute)
def permute(x: Dual, *dims: Any) -> Dual:
    return Dual(x.slices.permute(0, *(d % x.dim() + 1 for d in _sizes(dims))))


@rule(Tensor.expand)
def expand(x: Dual, *sizes: Any) -> Dual:
    wanted = _sizes(sizes)
    return Dual(lifted(x, len(wanted)).expand(-1, *wanted))


@rule(Tensor.expand_as)
def expand_as(x: Dual, other: Tensor) -> Dual:
    return expand(x, *other.shape)


@rule(Tensor.repeat)
def repeat(x: Dual, *sizes: Any) -> Dual:
    times = _sizes(sizes)
    return fresh(lifted(x, len(times)).repeat(1, *times))


@rule(Tensor.__getitem__)
def getitem(x: Any, index: Any) -> Any:
    """Basic indices and neighbouring index tensors; torch moves separated ones to the front."""
    if not isinstance(x, Dual):  # a plain tensor indexed by something dual
        return x[value(index)]
    indices = index if isinstance(index, tuple) else (index,)
    places = [i for i, part in enumerate(indices) if isinstance(part, Tensor | list)]
    if places and places[-1] - places[0] + 1 != len(places):
        return _each(x, lambda part: part[index])
    return Dual(x.slices[(slice(None), *indices)])


@rule(Tensor.flatten, torch.flatten)
def flatten(x: Dual, start_dim: int = 0, end_dim: int = -1) -> Dual:
    if x.dim() == 0:
        return Dual(x.slices[:, None])
    return Dual(x.slices.flatten(start_dim % x.dim() + 1, end_dim % x.dim() + 1))


@rule(Tensor.unflatten, torch.unflatten)
def unflatten(x: Dual, dim: int, sizes: Any) -> Dual:
    return Dual(x.slices.unflatten(from_end(dim, x.dim()), sizes))


@rule(Tensor.unsqueeze, torch.unsqueeze)
def unsqueeze(x: Dual, dim: int) -> Dual:
    return Dual(x.slices.unsqueeze(from_end(dim, x.dim() + 1)))


@rule(Tensor.squeeze, torch.squeeze)
def squeeze(x: Dual, dim: Any = None) -> Dual:
    """Slices are never fewer than two, so their own axis stays."""
    if dim is None:
        return Dual(x.slices.squeeze())
    dims = dim if isinstance(dim, tuple) else (dim,)
    return Dual(x.slices.squeeze(tuple(from_end(d, x.dim()) for d in dims)))


def _dims(x: Dual, dim: Any) -> Any:
    """Dimensions counted from the end; all of them for None."""
    if dim is None or dim == ():
        return tuple(range(-x.dim(), 0))
    return tuple(from_end(d, x.dim()) for d in (dim if isinstance(dim, tuple | list) else (dim,)))


@rule(Tensor.sum, torch.sum)
def total(x: Dual, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Dual:
    if x.dim() == 0:
        return x
    return fresh(x.slices.sum(_dims(x, dim), keepdim, dtype=dtype))


@rule(Tensor.mean, torch.mean)
def mean(x: Dual, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Dual:
    if x.dim() == 0:
        return x
    return fresh(x.slices.mean(_dims(x, dim), keepdim, dtype=dtype))


@rule(Tensor.masked_fill, torch.masked_fill)
def masked_fill(x: Any, mask: Tensor, filling: Any) -> Dual:
    """A filled place is constant (or follows what fills it)."""
    return where(mask, filling, x)


@rule(torch.where, Tensor.where)
def where(condition: Any, a: Any, b: Any) -> Dual:
    """Chooses value and tangents alike. Called as a method, the condition is in the middle."""
    if isinstance(a, Tensor) and a.dtype == torch.bool and not isinstance(condition, Dual):
        if isinstance(condition, Tensor) and condition.dtype != torch.bool:
            condition, a = a, condition
    elif isinstance(condition, Dual):
        condition, a = a, condition
    like = first(a, b)
    sides = []
    for x in (a, b):
        if not isinstance(x, Tensor):
            x = torch.tensor(x, dtype=like.dtype, device=like.device)
        dims = max(condition.dim(), a.dim() if isinstance(a, Tensor) else 0)
        slices = slices_of(x, like)
        dims = max(dims, b.dim() if isinstance(b, Tensor) else 0)
        sides.append(slices.reshape(len(slices), *(1,) * (dims - x.dim()), *x.shape))
    return fresh(torch.where(condition, sides[0], sides[1]))


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(tensors: Any, dim: int = 0) -> Dual:
    """Plain parts have zero tangents."""
    like = first(*tensors)
    if dim >= 0:
        dim -= like.dim()
    return fresh(torch.cat([slices_of(x, like) for x in tensors], dim))


@rule(torch.stack)
def stack(tensors: Any, dim: int = 0) -> Dual:
    like = first(*tensors)
    if dim >= 0:
        dim -= like.dim() + 1
    return fresh(torch.stack([slices_of(x, like) for x in tensors], dim))


@rule(Tensor.split, torch.split)
def split(x: Dual, size: Any, dim: int = 0) -> tuple[Dual, ...]:
    return tuple(map(Dual, x.slices.split(size, from_end(dim, x.dim()))))


@rule(Tensor.chunk, torch.chunk)
def chunk(x: Dual, chunks: int, dim: int = 0) -> tuple[Dual, ...]:
    return tuple(map(Dual, x.slices.chunk(chunks, from_end(dim, x.dim()))))


@rule(Tensor.unbind, torch.unbind)
def unbind(x: Dual, dim: int = 0) -> tuple[Dual, ...]:
    return tuple(map(Dual, x.slices.unbind(from_end(dim, x.dim()))))


@rule(F.embedding)
def embedding(indices: Tensor, weight: Dual, *_: Any, **__: Any) -> Dual:
    """Rows of the weight."""
    return fresh(weight.slices[:, indices])


@rule(F.dropout)
def dropout(x: Dual, p: float = 0.5, training: bool = True, inplace: bool = False) -> Dual:
    """Off: a gradient estimate needs one function. (The adapter's keyed dropout is a product.)"""
    if training and p > 0:
        raise TypeError("dropout with masks of its own has no directional derivative")
    return x


@rule(Tensor.contiguous)
def contiguous(x: Dual, **_: Any) -> Dual:
    return x if x.slices.is_contiguous() else fresh(x.slices.contiguous())


@rule(Tensor.to)
def convert(x: Dual, *args: Any, **kwargs: Any) -> Dual:
    args = tuple(a.dtype if isinstance(a, Dual) else a for a in args)
    slices = x.slices.to(*args, **kwargs)
    return x if slices is x.slices else fresh(slices)


@rule(Tensor.type_as)
def type_as(x: Dual, other: Tensor) -> Dual:
    return convert(x, other.dtype)


@rule(Tensor.float)
def to_float(x: Dual) -> Dual:
    return convert(x, torch.float32)


@rule(Tensor.double)
def to_double(x: Dual) -> Dual:
    return convert(x, torch.float64)


@rule(Tensor.clone, torch.clone)
def clone(x: Dual, **_: Any) -> Dual:
    return fresh(x.slices.clone())


def _by_dims(name: str, places: tuple[int, ...]) -> None:
    """A rule for ``x.name(..., dim, ...)``, whose arguments at ``places`` are dimensions."""
    method = getattr(Tensor, name)
    names = ("dim", "dim0", "dim1", "dims")

    def linear_map(x: Dual, *args: Any, **kwargs: Any) -> Dual:
        def shifted(a: Any) -> Any:
            if isinstance(a, tuple | list):
                return tuple(from_end(d, x.dim()) for d in a)
            return from_end(a, x.dim()) if isinstance(a, int) else a

        there = [shifted(a) if i in places else a for i, a in enumerate(args)]
        named = {n: shifted(a) if n in names else a for n, a in kwargs.items()}
        return Dual(method(x.slices, *there, **named))

    rule(method, *([getattr(torch, name)] if hasattr(torch, name) else []))(linear_map)


for _name, _places in {
    "transpose": (0, 1),
    "swapaxes": (0, 1),
    "narrow": (0,),
    "select": (0,),
    "index_select": (0,),
    "cumsum": (0,),
    "repeat_interleave": (1,),
    "roll": (1,),
    "flip": (0,),
    "movedim": (0, 1),
    "tril": (),
    "triu": (),
}.items():
    _by_dims(_name, _places)


@rule(Tensor.T.__get__, Tensor.mT.__get__, Tensor.t, torch.t)  # type: ignore[attr-defined]
def transposed(x: Dual) -> Dual:
    return Dual(x.slices.transpose(-1, -2)) if x.dim() > 1 else x


@rule(Tensor.gather, torch.gather)
def gather(x: Dual, dim: int, index: Tensor, **_: Any) -> Dual:
    there = index.expand(len(x.slices), *index.shape)
    return fresh(x.slices.gather(from_end(dim, x.dim()), there))


@rule(F.pad)
def pad(x: Dual, padding: Any, mode: str = "constant", value: float | None = None) -> Dual:
    """New places are constant."""
    if mode != "constant":
        return _each(x, lambda part: F.pad(part, padding, mode))
    slices = F.pad(x.slices, padding)
    if value:
        slices[0] = F.pad(x.slices[0], padding, mode, value)
    return fresh(slices)


@rule(Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
def detach(x: Dual) -> Tensor:
    """A stopped gradient: the value alone."""
    return x.slices[0]


def _each(x: Dual, function: Callable[[Tensor], Tensor]) -> Dual:
    return fresh(torch.stack([function(part) for part in x.slices]))


def _plain(name: str) -> None:
    """A rule for an operator whose result has no tangent: comparisons, fillers, places."""
    for home in (torch, Tensor):
        function = getattr(home, name, None)
        if function is not None:

            def of_values(*args: Any, _f: Any = function, **kwargs: Any) -> Any:
                return _f(*map(value, args), **{n: value(a) for n, a in kwargs.items()})

            rule(function)(of_values)


for _name in (
    *("eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__"),
    *("__ge__", "isnan", "isinf", "isfinite", "logical_not", "logical_and", "logical_or"),
    *("argmax", "argmin", "argsort", "sign", "floor", "ceil", "round", "zeros_like", "ones_like"),
    *("empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
    *("item", "tolist", "any", "all", "allclose", "equal", "long", "int", "bool", "__bool__"),
    *("__float__", "__int__", "is_nonzero", "rand_like", "randn_like", "bernoulli"),
):
    _plain(_name)
