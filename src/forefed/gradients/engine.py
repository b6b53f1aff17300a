"""What the gradient engines share: micro-batches, forward-equivalents and the exact head.

An engine is its own settings: a frozen ``Choice`` that is called with a loss. Exact engines return
``Estimate.grad``; estimating engines return slopes, and leave the classification head to its exact
gradient unless told to perturb it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.settings import Choice
from forefed.core.states import State
from forefed.core.types import Batch, DirectionSet, Estimate, Losses, LossFn, Params
from forefed.directions import Directions


class GradientEngine(Choice):
    """Base of all engines."""

    micro_batch: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"] | None,
        BeforeValidator(lambda x: None if x == "all" else x),
    ] = "auto"
    """Rows per micro-batch; "auto": about 512 tokens, "all" (or None): the whole batch. The result
    is the same to rounding, so peak memory is a setting."""
    estimates: ClassVar[bool] = False  # slopes instead of a gradient
    undecided: ClassVar[bool] = False  # stands for another one until a run is built
    by_values: ClassVar[bool] = False  # asks a loss for values alone (beside the head's gradient)
    remembers: ClassVar[bool] = False  # what it has seen of a client's loss serves its next steps

    @abstractmethod
    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        """Loss and gradient (or slopes along ``directions``) of ``params`` on one batch.

        ``head`` names the parameters of the classification head among ``params``.
        """

    def loss_of(self, task: Losses) -> LossFn:
        """The loss that this engine is called with."""
        return task.loss

    def perturbed(self, names: list[str], head: frozenset[str]) -> list[str]:
        """The names that this engine's slopes run over; the others get an exact gradient."""
        return []

    @property
    def stands_for(self) -> GradientEngine:
        """The engine whose costs are recorded: the emulated one, where another is emulated."""
        return self

    def among(self, simulated: bool, directions: Directions) -> GradientEngine:
        """The engine for clients that are simulated, or that are not, along these directions."""
        return self

    def recalling(self, kept: State, key: Key) -> GradientEngine:
        """The engine for one step of one client.

        Args:
            kept: the ``Estimate.kept`` of that client's step before; empty at first.
            key: this step's own.
        """
        return self

    def sample(
        self, loss: LossFn, batch: Batch, directions: DirectionSet | None, like: Params
    ) -> tuple[Batch, DirectionSet | None]:
        """A part of a call on which its memory can be measured: two micro-batches, as all from the
        second on are alike. (To measure a call of many passes takes gigabytes of notes.)"""
        rows = next(micro_batches(loss, batch, self.micro_batch))[0].size
        return (batch if 2 * rows >= batch.size else batch.rows(0, 2 * rows)), directions


@dataclass(frozen=True)
class Slopes:
    """What one micro-batch gives: its loss and ``slopes_K`` [K] (float64, on the CPU).

    The exact gradient of the parameters that were not perturbed is either there (``grad``), or to
    be had from the ``tracked`` loss, whose graph holds ``saved_bytes``. ``fallbacks`` counts
    operators that had no rule.
    """

    loss: float
    slopes_K: Tensor
    grad: Params = field(default_factory=dict)
    tracked: Tensor | None = None
    saved_bytes: float = 0.0
    fallbacks: Counter[str] = field(default_factory=Counter)
    kept: Params = field(default_factory=dict)
    """Means over the micro-batch, beside the loss (``Estimate.kept``)."""


class SlopeEngine(GradientEngine):
    """Base of the engines that return slopes along K directions."""

    head: Literal["exact", "perturbed"] = "exact"
    """"exact": the head gets its gradient without a backward pass through the body and is never
    perturbed. "perturbed": one direction over head and adapters together, as published."""
    sub_batches: Annotated[int, Field(ge=1)] = 1
    """Parts of the batch that get random directions of their own (the batch size: every example).
    Unbiased at the same cost and a little less noisy; that many times more slopes."""
    emulate: bool | Literal["auto"] = "auto"
    """The same slopes by one backward pass and its products with the directions. Passes and memory
    are recorded as those of the engine itself; seconds are not. "auto": where clients are simulated
    and directions.kind = "basis", which gives the gradient either way. Finite differences are
    emulated in their limit, eps towards 0: without their error."""

    renamed: ClassVar[Mapping[str, str]] = {"rehearse": "emulate", "independent": "sub_batches"}
    estimates: ClassVar[bool] = True

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        exact = config.directions.exact
        if exact and self.head == "perturbed" and config.adapter.kind == "head":
            yield (
                "directions.kind = 'basis' over a perturbed head costs a tangent per element of "
                "the head; set engine.head = 'exact', which is the same gradient for one pass"
            )
        if exact and self.sub_batches > 1:
            yield (
                "engine.sub_batches: the unit vectors of directions.kind = 'basis' give the exact "
                "gradient already; leave it at 1"
            )

    @property
    def stands_for(self) -> GradientEngine:
        return self.model_copy(update={"emulate": False}) if self.emulates else self

    @property
    def emulates(self) -> bool:
        return self.emulate is True  # "auto" is decided by ``among``

    def among(self, simulated: bool, directions: Directions) -> GradientEngine:
        if self.emulate != "auto":
            return self
        return self.model_copy(update={"emulate": simulated and directions.exact})

    def perturbed(self, names: list[str], head: frozenset[str]) -> list[str]:
        return [n for n in names if self.head == "perturbed" or n not in head]

    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        names = self.perturbed(list(params), head)
        body = trees.pick(params, names)
        exact = {n: x.detach().requires_grad_() for n, x in params.items() if n not in body}
        if not body:
            return exact_head(loss, params, batch, self.micro_batch)
        assert directions is not None, "an estimating engine needs directions"
        mean_loss, grad, kept = 0.0, Accumulator(exact), Accumulator()
        slopes_K = torch.zeros(directions.count(body), dtype=torch.float64)
        fallbacks: Counter[str] = Counter()
        slopes = self.emulated if self.emulates else self.slopes
        for rows, share_of_rows, ks in self.parts(loss, batch, len(slopes_K)):
            along = directions if len(ks) == len(slopes_K) else Window(directions, ks)
            for part, share_of_part in micro_batches(loss, rows, self.micro_batch):
                share = share_of_rows * share_of_part
                found = slopes(loss, body, exact, part, along)
                mean_loss += share * found.loss
                # combine() takes the mean over all directions, of which these rows see few
                slopes_K[ks.start : ks.stop] += len(slopes_K) / len(ks) * share * found.slopes_K
                grad.add(found.grad, share)
                if found.tracked is not None:
                    grad.add_later(found.tracked, share, found.saved_bytes)
                fallbacks += found.fallbacks
                kept.add(found.kept, share)
                del found  # a large head's gradient would stay through the next micro-batch
        passes = self.passes(len(slopes_K) // self.sub_batches, bool(exact))
        total, forwards = grad.finish(), passes * batch.size
        return Estimate(mean_loss, total, slopes_K, forwards, dict(fallbacks), kept.finish())

    def sample(
        self, loss: LossFn, batch: Batch, directions: DirectionSet | None, like: Params
    ) -> tuple[Batch, DirectionSet | None]:
        """As for every engine, and along the directions of one pass."""
        few, _ = super().sample(loss, batch, directions, like)
        if directions is None or directions.count(like) <= self.at_once * self.sub_batches:
            return few, directions
        return few, Window(directions, range(self.at_once * self.sub_batches))

    @property
    def at_once(self) -> int:
        """Directions that one pass walks along."""
        return 1

    def parts(self, loss: LossFn, batch: Batch, count: int) -> Iterator[tuple[Batch, float, range]]:
        """Parts of the batch, their shares of its mean, and their directions out of ``count``."""
        if self.sub_batches == 1:
            yield batch, 1.0, range(count)
            return
        each, total = count // self.sub_batches, loss.weight(batch)
        for i in range(self.sub_batches):
            rows = batch.rows(
                i * batch.size // self.sub_batches, (i + 1) * batch.size // self.sub_batches
            )
            if rows.size and loss.weight(rows):
                yield rows, loss.weight(rows) / total, range(i * each, (i + 1) * each)

    @abstractmethod
    def slopes(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Slopes:
        """Loss, slopes over ``body``, and the gradient of ``exact``, of one micro-batch."""

    def emulated(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Slopes:
        """``slopes``, by one backward pass."""
        return emulated(loss, body, exact, batch, directions)

    @abstractmethod
    def passes(self, k: int, with_head: bool) -> float:
        """Forward-equivalents of ``k`` slopes of one example."""


@dataclass(frozen=True)
class Window:
    """Some of the directions of a set, as an engine walks along them."""

    of: DirectionSet
    ks: range

    def count(self, like: Params) -> int:
        return len(self.ks)

    def tangents(self, like: Params, ks: range) -> Params:
        return self.of.tangents(like, self.ks[ks.start : ks.stop])

    def project(self, grad: Params, ks: range | None = None) -> Tensor:
        return self.of.project(grad, self.ks if ks is None else self.ks[ks.start : ks.stop])


AUTO_TOKENS = 512
"""Tokens per micro-batch: from here on a matrix product runs at full speed on a CPU, and an inner
feed-forward activation of a 1,024-wide model takes 8 MB."""

Rows = int | Literal["auto"] | None


def rows_at_once(batch: Batch, rows: Rows) -> int:
    """Rows of a micro-batch."""
    if rows == "auto":
        return max(1, AUTO_TOKENS // batch.length)
    return batch.size if rows is None else rows


def micro_batches(loss: LossFn, batch: Batch, rows: Rows) -> Iterator[tuple[Batch, float]]:
    """The batch in parts of at most ``rows`` rows, each with its share of the batch's mean."""
    rows = rows_at_once(batch, rows)
    if rows >= batch.size:
        yield batch, 1.0
        return
    total = loss.weight(batch)
    for start in range(0, batch.size, rows):
        part = batch.rows(start, min(start + rows, batch.size))
        weight = loss.weight(part)
        if weight:  # a part without a predicted token has no loss
            yield part, weight / total


class Accumulator:
    """A share-weighted sum of gradients, empty until the first one (local to one engine call).

    Adds in place: a head may be as large as everything else that an engine holds. For the same
    reason a tracked loss waits, together with those after it, while its graph is smaller than the
    gradient of its ``leaves``.
    """

    def __init__(self, leaves: Params | None = None) -> None:
        self.total: Params = {}
        self.leaves = leaves or {}
        self.waiting: list[tuple[Tensor, float]] = []
        self.waiting_bytes = 0.0

    def add(self, grad: Params, share: float) -> None:
        if share == 1.0 and not self.total:
            self.total = grad
        elif not self.total:
            self.total = {n: share * g for n, g in grad.items()}
        else:
            for n, g in grad.items():
                self.total[n].add_(g, alpha=share)

    def add_later(self, loss: Tensor, share: float, saved_bytes: float) -> None:
        """The gradient of ``loss`` by the leaves, now or with those to come."""
        self.waiting.append((loss, share))
        self.waiting_bytes += saved_bytes
        if self.waiting_bytes > sum(x.nbytes for x in self.leaves.values()):
            self.finish()

    def finish(self) -> Params:
        """The sum, with everything that waited."""
        while self.waiting:
            loss, share = self.waiting.pop(0)
            grads = torch.autograd.grad(loss, list(self.leaves.values()))
            self.add(dict(zip(self.leaves, grads, strict=True)), share)
            del loss, grads
        self.waiting_bytes = 0.0
        return self.total


def value_and_grad(
    loss: LossFn, params: Params, fixed: Params, batch: Batch
) -> tuple[float, Params]:
    """Loss and its gradient by ``params``, by reverse mode; ``fixed`` are constants."""
    with torch.enable_grad():
        leaves = {n: x.detach().requires_grad_(True) for n, x in params.items()}
        value = loss({**fixed, **leaves}, batch)
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return float(value.detach()), {
        n: torch.zeros_like(x) if g is None else g
        for (n, x), g in zip(leaves.items(), grads, strict=True)
    }


def emulated(
    loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
) -> Slopes:
    """Loss, slopes over ``body`` and the gradient of ``exact``, by one backward pass."""
    value, grad = value_and_grad(loss, {**body, **exact}, {}, batch)
    slopes_K = directions.project(trees.pick(grad, body))
    return Slopes(value, slopes_K, {n: grad[n] for n in exact})


def exact_head(loss: LossFn, head: Params, batch: Batch, rows: Rows) -> Estimate:
    """The head's gradient: reverse mode that ends where the head begins, so nothing is stored."""
    mean_loss, grad = 0.0, Accumulator()
    for part, share in micro_batches(loss, batch, rows):
        part_loss, part_grad = value_and_grad(loss, head, {}, part)
        mean_loss += share * part_loss
        grad.add(part_grad, share)
    return Estimate(mean_loss, grad.total, None, float(batch.size))
