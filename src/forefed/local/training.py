"""A client's local loop: batches -> engine -> gradient -> optimiser, for some steps.

Source: FedAvg (McMahan et al., arXiv 1602.05629); SPRY (arXiv 2405.15551, Algorithm 1).
Departures from SPRY's published code: the head has its exact gradient, non-finite slopes are
skipped and counted, outlying slopes are clamped, and dropout of the frozen body is off.

One step of the client and one step of the server's replay are the same function, ``advance``; so
under the scalars codec both end with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor

from forefed.core import trees
from forefed.core.keys import Secret
from forefed.core.settings import Choice, Slot
from forefed.core.sizes import parse_bytes
from forefed.core.states import State, States, below, flat, keep, of_flat
from forefed.core.types import (
    AtPoints,
    Batch,
    ClientContext,
    ClientState,
    Each,
    Estimate,
    InTwo,
    Locally,
    LossFn,
    Order,
    Params,
    Unit,
    Update,
    at_points_of,
    each_of,
    in_two_of,
    locally_of,
)
from forefed.data.examples import ClientData, Indices
from forefed.directions import Directions, Fresh, RunningClamp
from forefed.gradients import GradientEngine
from forefed.gradients.forward import Forward
from forefed.gradients.memory import measure_peak
from forefed.local.groups import Group, Slopes, groups_of, project, rebuild
from forefed.local.samplers import SAMPLERS, Sampler, Shuffled
from forefed.local.steps import StepLog
from forefed.models.bag_of_words import WORDS, Words
from forefed.models.prefix import FrozenPrefix
from forefed.modifiers import Modifier
from forefed.optimisers import OPTIMISERS, AdamW, Optimiser
from forefed.sharing import Everything, Sharing
from forefed.wire import Codec

OPTIMIZER, PRIVATE, ENGINE = "optimizer", "private", "engine"
"""Owners of a client's state: its optimiser's moments, the parameters that it keeps to itself, what
its engine remembers."""


class LocalTraining(Choice):
    """Some local epochs of mini-batch steps on the client's own examples."""

    kind: Literal["local"] = "local"
    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """At most so many local steps a round (1: the papers' per-iteration mode)."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = 8
    """Examples per step; "all": one batch of everything the client has."""
    group_by_length: bool = True
    """Batches of texts of similar length, in random order: less padding to compute."""
    sampler: Annotated[
        SerializeAsAny[Sampler], Slot(SAMPLERS, "which examples make its batches?")
    ] = Shuffled()
    optimiser: Annotated[SerializeAsAny[Optimiser], Slot(OPTIMISERS, "how does a client step?")] = (
        AdamW()
    )
    keep_optimiser: bool = False
    """Keep the optimiser's moments at the client between its rounds (published: dropped)."""
    prefix_cache: Literal["off", "ram", "disk", "kept"] = "ram"
    """Where hidden states before the first trained block are kept, where that pays: with more than
    one epoch, or when nobody trains anything before it; "kept": on disk, and for later runs of the
    same texts, too. Results change by rounding only."""
    prefix_cache_limit: Annotated[
        int, BeforeValidator(lambda x: parse_bytes(x, "client.prefix_cache_limit"))
    ] = parse_bytes("500MB")
    """When so much is kept, the run goes on without keeping more."""

    brought: ClassVar[bool] = False
    """Are the steps a script's own, which is none of this library's (``local/brought.py``)?"""

    @property
    def linear(self) -> bool:
        """Is a step a fixed multiple of the gradient that the optimiser is given?"""
        return self.optimiser.linear

    def walk(
        self, trainer: Trainer, order: Order, data: ClientData, states: States, ctx: ClientContext
    ) -> Walked:
        """One client's local steps, from ``order.params`` over ``order.assigned``."""
        return trainer.walk(order, data, states, ctx)

    def conflicts(self, config: Any) -> Iterator[str]:
        if self.keep_optimiser and config.codec.sends_slopes:
            yield (
                "client.keep_optimiser: the server cannot replay moments that stay at the client; "
                "use codec.kind = 'dense', or drop the moments"
            )


@dataclass(frozen=True)
class TaskView:
    """What local training needs of a task: its loss (three variants), which names are the head, and
    its frozen prefix if that may be cached."""

    loss: LossFn
    loss_recomputed: LossFn
    head: frozenset[str]
    prefix: FrozenPrefix | None = None
    units: tuple[Unit, ...] = ()
    first: Params = field(default_factory=dict)
    """The run's first values, at which what a client keeps for itself begins."""
    classes: int = 0
    """How many are learned; 0: none."""
    loss_structured: LossFn | None = None


@dataclass(frozen=True)
class AssignedLoss:
    """The loss as a function of the assigned parameters; all others are constants."""

    loss: LossFn
    fixed: Params

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.loss({**self.fixed, **params}, batch)

    def weight(self, batch: Batch) -> int:
        return self.loss.weight(batch)

    @property
    def each(self) -> Each | None:
        inner = each_of(self.loss)
        return None if inner is None else lambda p, batch: inner({**self.fixed, **p}, batch)

    @property
    def locally(self) -> Locally | None:
        inner = locally_of(self.loss)
        if inner is None:
            return None
        return lambda p, batch, parts, copies: inner(
            {**self.fixed, **p}, batch, parts, {**self.fixed, **copies}
        )

    @property
    def in_two(self) -> InTwo | None:
        inner = in_two_of(self.loss)
        if inner is None:
            return None
        return InTwo(lambda p, batch: inner.logits({**self.fixed, **p}, batch), inner.losses)

    @property
    def at_points(self) -> AtPoints | None:
        inner = at_points_of(self.loss)
        return None if inner is None else lambda p, batch: inner(_beside(self.fixed, p), batch)


def _beside(fixed: Params, points: Params) -> Params:
    """Points [P, ...] of some parameters, with the others as they are at each."""
    count = len(next(iter(points.values())))
    return {**{n: x.expand(count, *x.shape) for n, x in fixed.items()}, **points}


@dataclass(frozen=True)
class Walked:
    """What a round's local steps came to.

    ``examples``: how many of the client's were seen; ``slopes``: [steps, K] by group, where slopes
    travel.
    """

    params: Params
    states: States
    examples: int
    metrics: dict[str, float]
    slopes: Slopes = field(default_factory=dict)
    kept: Params = field(default_factory=dict)
    """What the client keeps for its own answers, beside what it never sends."""


@dataclass(frozen=True)
class Trainer:
    """The client slot: everything fixed about local training. Calling it trains one client."""

    settings: LocalTraining
    engine: GradientEngine
    codec: Codec
    task: TaskView
    modifiers: tuple[Modifier, ...] = ()
    sharing: Sharing = Everything()  # noqa: RUF009 (frozen)
    directions: Directions = Fresh()  # noqa: RUF009 (frozen)
    rounds: int = 0
    """Of the whole run, over which the optimiser's schedule is laid."""
    measure: bool = False
    """Measure the peak memory of the first step (metric ``peak_bytes``)."""

    def __call__(
        self,
        order: Order,
        data: ClientData,
        state: ClientState,
        secret: Secret | None = None,
    ) -> tuple[Update, ClientState]:
        """One client's round.

        Args:
            order: what to train, from which parameters.
            data: the client's examples; none at all gives an update of weight 0.
            state: what the client kept from its earlier rounds.
            secret: this client's own of this round; drawing without one is an error.

        Returns:
            The update (old - new, or slopes) and the state to keep.
        """
        states = of_flat(state)
        shared, private = order.assigned, self.private(order.round)
        if private:
            first = order.params if self.sharing.from_common else self.task.first
            own = {n: states.get(PRIVATE, {}).get(n, first[n]) for n in private}
            order = replace(
                order, params={**order.params, **own}, assigned=(*order.assigned, *private)
            )
        ctx = ClientContext(order=order, own=secret, head=self.task.head)
        walked = self.settings.walk(self, order, data, states, ctx)
        params, states = walked.params, dict(walked.states)
        if self.codec.sends_slopes:
            update = Update(order.client, walked.examples, None, walked.slopes, walked.metrics)
        else:
            delta = trees.subtract(trees.pick(order.params, shared), params)
            update = Update(order.client, walked.examples, delta, None, walked.metrics)
        sending = replace(
            ctx,
            arriving=lambda change: self.codec.lossy(change, ctx),
            memory=states.get(ENGINE, {}),
        )
        for modifier in self.modifiers:
            update, own = modifier.on_send(update, states.get(modifier.owner, {}), sending)
            states = keep(states, modifier.owner, own)
        mine = {**trees.pick(params, private), **walked.kept}
        if self.sharing.personal and not self.sharing.keeps_trained:
            mine = self.sharing.kept(torch.as_tensor(data.examples.labels[data.train]))
        if mine:
            states = keep(states, PRIVATE, mine)
        if not self.settings.keep_optimiser:
            states = keep(states, OPTIMIZER, {})
        if not self.engine.remembers:
            states = keep(states, ENGINE, {})
        return update, flat(states)

    def walk(self, order: Order, data: ClientData, states: States, ctx: ClientContext) -> Walked:
        """The round's local steps, from ``order.params`` over ``order.assigned``."""
        params = trees.pick(order.params, order.assigned)
        base = self.engine.loss_of(self.task)
        prefix = self.task.prefix
        if prefix is not None:
            base = prefix.loss(base, order.assigned, recurring=self.settings.epochs > 1)
        loss = AssignedLoss(base, order.params)
        groups = groups_of(self.engine, self.codec, order, self.task.head, self.directions)
        log, clamp = StepLog(), RunningClamp(self.directions.slope_bound)
        words = Words.told(below(order.broadcast, WORDS))
        each = next((m for m in self.modifiers if m.per_example), None)
        plan = self.batches(order, data, ctx, loss)
        for step, indices in enumerate(plan if each else [b for b in plan if len(b)]):
            if each:
                found = self.summed(each, loss, params, indices, data, groups, step, log, ctx)
                estimate, slopes, exact = found
            else:
                batch = data.examples.batch(indices, dropout=order.key.fold("dropout", step))
                if words is not None:
                    batch = words.beside(batch, *data.examples.tokens_of(indices))
                for modifier in (m for m in self.modifiers if m.reads_batches):
                    labels = data.examples.labels[data.train]
                    batch = modifier.on_batch(batch, labels, self.task.classes, ctx)
                at = self
                if self.engine.remembers:
                    known = states.get(ENGINE, {})
                    recalling = self.engine.recalling(known, order.key.fold("engine", step))
                    at = replace(self, engine=recalling)
                estimate = clamp(at.estimate(loss, params, batch, groups, step, log))
                if self.engine.remembers or estimate.kept:
                    states = keep(states, ENGINE, estimate.kept)
                slopes, exact = self.split(estimate, groups, params, step, ctx)
            grad = {**exact, **rebuild(slopes, groups, params, step)}
            log.add(estimate, slopes, len(indices), len(grad) == len(params), grad)
            params, states = advance(self, ctx, params, states, grad, step)
        # of examples drawn in secret not even their number is told
        n_examples = len(data.train) if each else min(len(data.train), log.seen)
        metrics = {**log.metrics(), "clamped": float(clamp.count)}
        sent = log.stacked(list(groups)) if self.codec.sends_slopes else {}
        return Walked(params, states, n_examples, metrics, sent)

    def private(self, round: int) -> tuple[str, ...]:
        """The parameters that a client trains for itself in this round, in the order of use."""
        names = self.sharing.split(self.task.units, round).private
        return tuple(n for unit in self.task.units for n in unit.params if n in names)

    def estimate(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        groups: dict[str, Group],
        step: int,
        log: StepLog,
    ) -> Estimate:
        """The engine on one batch, with the peak memory of the first step when asked for."""
        body = groups.get("body") if self.engine.estimates else None
        directions = body.directions.at(step) if body else None
        work = partial(self.engine, loss, params, batch, directions, self.task.head)
        if not (self.measure and step == 0 and log.peak_bytes is None):
            return work()
        body_params = trees.pick(params, body.names) if body else {}
        real = self.engine.stands_for
        few, along = real.sample(loss, batch, directions, body_params)
        if real is self.engine and few is batch and along is directions:
            estimate, log.peak_bytes = measure_peak(work, batch.labels.device)
            return estimate
        part = partial(real, loss, params, few, along, self.task.head)
        _, log.peak_bytes = measure_peak(part, batch.labels.device)
        return work()

    def batches(
        self,
        order: Order,
        data: ClientData,
        ctx: ClientContext | None = None,
        loss: LossFn | None = None,
    ) -> list[Indices]:
        """The positions of every local step's examples. ``loss``: of which samplers may ask (None:
        the task's)."""
        ctx = ctx or ClientContext(order=order, head=self.task.head)
        asked = partial(losses_of, loss or self.task.loss, order.params, data)
        return self.settings.sampler.batches(self.settings, data, ctx, asked)

    def summed(
        self,
        each: Modifier,
        loss: LossFn,
        params: Params,
        rows: Indices,
        data: ClientData,
        groups: dict[str, Group],
        step: int,
        log: StepLog,
        ctx: ClientContext,
    ) -> tuple[Estimate, Slopes, Params]:
        """What decides a step, from examples that were computed one by one: an estimate without a
        loss, slopes by group, and exact gradients."""
        named = {n for group in groups.values() for n in group.names}
        like = {
            f"slopes/{g}": torch.zeros(group.directions.count(trees.pick(params, group.names)))
            for g, group in groups.items()
        }
        like |= {f"exact/{n}": torch.zeros_like(x) for n, x in params.items() if n not in named}
        total = {n: x.double() for n, x in like.items()}
        forwards, dropout = 0.0, ctx.key.fold("dropout", step)
        each_loss = each_of(loss)
        alone = [*groups] == ["body"] and len(named) == len(params)
        if each_loss and alone and isinstance(self.engine, Forward) and self.engine.in_one_pass:
            along = groups["body"].directions.at(step)
            batch = data.examples.batch(rows, dropout=dropout) if len(rows) else None
            none_BK = torch.zeros(0, along.count(params))
            slopes_BK = (
                none_BK if batch is None else self.engine.each(each_loss, params, batch, along)
            )
            for slopes_K in slopes_BK:
                bounded = each.on_example({"slopes/body": slopes_K}, ctx)
                total = {n: total[n] + x for n, x in bounded.items()}
            forwards = self.engine.passes(along.count(params), False) * len(rows)
            rows = rows[:0]
        for place, row in enumerate(rows):
            one = replace(data.examples.batch([row], dropout=dropout), first_row=place)
            found = self.estimate(loss, params, one, groups, step, log)
            forwards += found.forwards
            log.fallbacks.update(found.fallbacks)
            slopes, exact = self.decisive(found, groups, params, step)
            message = {f"slopes/{g}": x for g, x in slopes.items()}
            message |= {f"exact/{n}": x for n, x in exact.items()}
            total = {n: total[n] + x for n, x in each.on_example(message, ctx).items()}
        expected = getattr(self.settings.sampler, "rate", 1.0) * len(data.train)
        done = each.on_sum(total, expected, ctx, step)
        slopes = {g: done[f"slopes/{g}"] for g in groups}
        if self.codec.sends_slopes:
            slopes = {g: x.to(torch.float32) for g, x in slopes.items()}
            slopes = self.codec.lossy(slopes, ctx, step)
        exact = {n: done[f"exact/{n}"].to(x) for n, x in params.items() if n not in named}
        return Estimate(math.nan, exact, None, forwards), slopes, exact

    def split(
        self,
        estimate: Estimate,
        groups: dict[str, Group],
        params: Params,
        step: int,
        ctx: ClientContext,
    ) -> tuple[Slopes, Params]:
        """What decides the step: slopes by group, and exact gradients of the other parameters."""
        slopes, exact = self.decisive(estimate, groups, params, step)
        return (self.codec.lossy(slopes, ctx, step) if self.codec.sends_slopes else slopes), exact

    def decisive(
        self, estimate: Estimate, groups: dict[str, Group], params: Params, step: int
    ) -> tuple[Slopes, Params]:
        """``split``, before a codec rounds."""
        if self.codec.sends_slopes:
            return project(estimate, groups, params, step), {}
        slopes = {} if estimate.slopes_K is None else {"body": estimate.slopes_K}
        return slopes, estimate.grad


def losses_of(loss: LossFn, params: Params, data: ClientData, rows: Indices) -> NDArray[np.float64]:
    """The loss of each of these examples, [N]; no dropout, no gradient."""
    each, found = each_of(loss), []
    with torch.no_grad():
        for i in range(0, len(rows), SCORED if each else 1):
            batch = data.examples.batch(rows[i : i + SCORED if each else i + 1])
            values = each(params, batch) if each else loss(params, batch).reshape(1)
            found.append(values.double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)


SCORED = 16
"""Examples whose losses are computed at once."""


def advance(
    trainer: Trainer,
    ctx: ClientContext,
    params: Params,
    states: States,
    grad: Params,
    step: int,
) -> tuple[Params, dict[str, State]]:
    """One local step, at the client and in the server's replay alike; a non-finite one is none."""
    if not trees.all_finite(grad):
        return params, dict(states)
    grad, new = bent(trainer.modifiers, ctx, params, states, grad, step)
    moments = new.get(OPTIMIZER, {})
    optimiser = trainer.settings.optimiser.at(ctx.round, trainer.rounds)
    if ctx.order.times != 1:
        optimiser = optimiser.scaled(ctx.order.times)
    new[OPTIMIZER], params = optimiser.step(moments, params, grad, ctx.head)
    return params, new


def bent(
    modifiers: Iterable[Modifier],
    ctx: ClientContext,
    params: Params,
    states: States,
    grad: Params,
    step: int,
) -> tuple[Params, dict[str, State]]:
    """A local step's gradient after the modifiers, and their states."""
    new = dict(states)
    for modifier in modifiers:
        grad, own = modifier.on_step(grad, params, new.get(modifier.owner, {}), ctx, step)
        if own:
            new[modifier.owner] = own
    return grad, new
