"""Backprop that runs each block again and keeps as little as it can of that second run.

Source: MeSP (arXiv 2602.13069): keep the inputs of the blocks, and in the backward pass of an
adapted matrix compute h = x A^T again instead of keeping it. For y = x W^T + s h B^T, with g the
gradient by y:

    dB = s g^T h,   dh = s g B,   dA = dh^T x,   dx = g W + dh A.

So an adapted matrix keeps x alone, which its neighbours (q, k and v) share, and no copy of it in
the adapter's number format (``models.lean``). Departures: it works through the models of
transformers as they are, by functions in place of their modules' ``forward`` during the second run;
and three things besides:

- a part of a block that treats every token by itself (feed-forward, norms) keeps only its input,
  and runs again for a few tokens at a time;
- a matrix product whose result the backward pass does not read is left out (of a residual branch
  the last one). That is found by trying: with NaN in its place the gradient is the same;
- attention keeps q, k and v only (``models.rowwise``).

What is found out about one block holds for all that are built alike.

Axes: S positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from forefed.core.types import Params
from forefed.models.functional import Call, Functional, KeyedDropout, replaced
from forefed.models.lean import (
    Forward,
    adapted,
    few_tokens,
    is_adapted,
    nothing,
    products,
    some_at_a_time,
)
from forefed.models.recompute import checkpointed
from forefed.models.rowwise import RowwiseAttention

HIDDEN = "hidden_states"
"""The name of a block's input, where it is given by name."""


@dataclass(frozen=True)
class Lean:
    """What a second run of one kind of block may leave out, by names below the block.

    ``alone``: modules that treat every token by itself; ``unread``: modules whose result nobody
    reads in the backward pass.
    """

    alone: tuple[str, ...]
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Seen:
    """One kind of block: what treats every token by itself; the modules that ran last, in the block
    and in each of those; and what a second run may leave out, once that has been tried."""

    alone: tuple[str, ...]
    last: frozenset[str]
    lean: Lean | None = None


@dataclass(frozen=True)
class Structured:
    """The second runs of one model's blocks. ``found``: a memory, not a setting."""

    model: nn.Module
    functional: Functional
    found: dict[Any, Seen] = field(default_factory=dict)
    names: dict[nn.Module, tuple[str, ...]] = field(default_factory=dict)

    @contextmanager
    def open(self, call: Call, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """While open, blocks keep only their inputs and run again in the backward pass."""
        with replaced({b: partial(self.first_run, call, b, b.forward) for b in blocks}):
            yield

    def first_run(
        self, call: Call, block: nn.Module, forward: Forward, *args: Any, **kwargs: Any
    ) -> Any:
        hidden = args[0] if args else kwargs.get(HIDDEN)
        names = self.names_of(block, call.params)
        trained = [call.params[n] for n in names]
        leaves = [x for x in (hidden, *trained) if isinstance(x, Tensor) and x.requires_grad]
        if not torch.is_grad_enabled() or not leaves:
            return forward(*args, **kwargs)
        by_name, more = not args, args[1:]
        named = {n: x for n, x in kwargs.items() if args or n != HIDDEN}

        def of_hidden(x: Tensor) -> Any:  # must not hold the input: that goes after its block
            return forward(**{HIDDEN: x}, **named) if by_name else forward(x, *more, **named)

        if isinstance(hidden, Tensor) and not _tracked([*more, *named.values()]):
            with suppress(_Unfit):
                return _Block.apply(_Again(self, call, block, of_hidden, names), hidden, *trained)
        return checkpointed(self.functional, call, forward)(*args, **kwargs)

    def names_of(self, block: nn.Module, params: Params) -> tuple[str, ...]:
        """The trained tensors that a block uses. TinyLoRA shares whole modules between blocks, so
        names do not tell."""
        if block not in self.names:
            inside = set(block.modules())
            owners = {n: self.model.get_submodule(n.rpartition(".")[0]) for n in params}
            self.names[block] = tuple(n for n, owner in owners.items() if owner in inside)
        return self.names[block]


@dataclass(frozen=True)
class _Again:
    """The second run of one block, in one call."""

    structured: Structured
    call: Call
    block: nn.Module
    forward: Callable[[Tensor], Any]
    names: tuple[str, ...]

    def gradients(
        self, x: Tensor, trained: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """By the block's input and its trained tensors."""
        params = dict(zip(self.names, trained, strict=True))
        call = replace(self.call, params=params)
        return self.structured.functional.run(call, self._gradients, x, params, grads)

    @property
    def kind(self) -> Any:
        return tuple((name, type(m)) for name, m in self.block.named_modules())

    def first(self, x: Tensor) -> Any:
        """The block's output."""
        found = self.structured.found
        if x.shape[1] < 2:  # of one token nothing can be found out
            return self.forward(x)
        if self.kind not in found:
            found[self.kind] = self.look(x)
        modules = dict(self.block.named_modules())
        alone = [modules[name] for name in found[self.kind].alone]
        with replaced({m: partial(some_at_a_time, m.forward) for m in alone}):
            return self.forward(x)

    def _gradients(
        self, x: Tensor, params: Params, grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        found, kind = self.structured.found, self.kind
        seen = found.get(kind, Seen((), frozenset(), Lean(())))
        if seen.lean is not None:
            return self.run(seen.lean, x, params, grads)
        lean = Lean(seen.alone)
        result = self.run(lean, x, params, grads)
        for unread in (seen.last, seen.last - set(seen.alone)):
            less = Lean(seen.alone, unread)
            if unread and _equal(self.run(less, x, params, grads), result):
                lean = less
                break
        found[kind] = replace(seen, lean=lean)
        return result

    def run(
        self, lean: Lean, x: Tensor, params: Params, grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        forwards: dict[nn.Module, Forward] = {}
        for name, module in self.block.named_modules():
            unread = name in lean.unread
            if name in lean.alone:
                own = [params[n] for n in self.structured.names_of(module, params)]
                forwards[module] = partial(few_tokens, module.forward, own, unread)
            elif is_adapted(module):
                forwards[module] = partial(adapted, module, module.forward, unread)
            elif unread:
                forwards[module] = partial(nothing, module)
        with torch.enable_grad(), replaced(forwards), RowwiseAttention():
            output = self.forward(x)
            ends = [
                (get_gradient_edge(y), g)
                for y, g in zip(_tensors(output), grads, strict=True)
                if y is not None and y.requires_grad and g is not None
            ]
            del output
            leaves = [x, *params.values()]
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            roots, along = [end for end, _ in ends], [g for _, g in ends]
            found = iter(torch.autograd.grad(roots, wanted, along, allow_unused=True))
        return [next(found) if leaf.requires_grad else None for leaf in leaves]

    def look(self, x: Tensor) -> Seen:
        """Watches the block run."""
        layers = products(self.block)
        order: list[str] = []
        alone: list[str] = []

        def spy(name: str, module: nn.Module, run: Forward, *args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            order.append(name)
            if name not in layers and _treats_tokens_alone(module, run, output, args, kwargs):
                alone.append(name)
            return output

        watched = {**dict(self.block.named_children()), **layers}
        spies = {m: partial(spy, n, m, m.forward) for n, m in watched.items()}
        with torch.no_grad(), replaced(spies):
            self.forward(x)
        once = tuple(name for name in alone if order.count(name) == 1)
        ran = [name for name in order if name in layers]
        last = {of[-1] for name in once if (of := [n for n in ran if n.startswith(f"{name}.")])}
        if ran:
            last.add(next((n for n in once if ran[-1].startswith(f"{n}.")), ran[-1]))
        return Seen(once, frozenset(last))


class _Block(torch.autograd.Function):
    """A block that keeps its input."""

    @staticmethod
    def forward(ctx: Any, again: _Again, x: Tensor, *trained: Tensor) -> Any:
        ctx.again = again
        ctx.save_for_backward(x, *trained)
        output = again.first(x)
        _tensors(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        x, *trained = (
            t.detach().requires_grad_(wanted)
            for t, wanted in zip(ctx.saved_tensors, needed, strict=True)
        )
        return (None, *ctx.again.gradients(x, trained, grads))


def _treats_tokens_alone(
    module: nn.Module, run: Forward, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Tried on the first half of the tokens, for a norm or a module of several matrices."""
    x = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape:
        return False
    random = any(isinstance(m, KeyedDropout) and m.p > 0 for m in module.modules())
    norm = not [*module.children()] and any(p.dim() == 1 for p in module.parameters())
    if x.dim() != 3 or random or not (norm or len(products(module)) > 1):
        return False
    half = x.shape[1] // 2
    found, expected = run(x[:, :half].contiguous()).double(), output[:, :half].double()
    near = 16 * torch.finfo(x.dtype).eps * float(expected.abs().max())
    return bool(torch.allclose(found, expected, rtol=0, atol=near))


class _Unfit(Exception):
    """A block whose output is neither a tensor nor a tuple of tensors."""


def _tensors(output: Any) -> tuple[Tensor | None, ...]:
    """What a block hands over.

    Raises:
        _Unfit: there is more.
    """
    outputs = output if isinstance(output, tuple) else (output,)
    if not all(x is None or isinstance(x, Tensor) for x in outputs):
        raise _Unfit
    return outputs


def _tracked(x: Any) -> bool:
    if isinstance(x, tuple | list):
        return any(_tracked(y) for y in x)
    return isinstance(x, Tensor) and x.requires_grad


def _equal(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> bool:
    return all(
        x is y if x is None or y is None else torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )
