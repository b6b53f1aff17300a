"""From a message to what it says of the gradient, and from a gradient to what a message would say.

Two ways of comparing a guess with a message, one per kind of channel:

    slopes      <g, v_k> along the directions of the order, all steps one after the other
    plain step  old - new: the sum of the steps' gradients times the rate
    AdamW       old - new against the guess's own g / (|g| + eps) times the rate, which is a first
                step to the bit; of one step in full precision |g| itself is solved for, too

Axes: M measurements, D elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forefed.audit.scalars import recovered
from forefed.audit.subject import Subject
from forefed.core import trees
from forefed.core.types import Order, Params, Update
from forefed.local.groups import Group, groups_of
from forefed.optimisers import AdamW

MOST_NUMBERS = 20_000_000
"""Of directions that are held at once; steps beyond are not looked at."""
ROUNDING = 1.2e-7
"""Of float32, relative: a step this near to AdamW's largest one says only the sign."""


@dataclass(frozen=True)
class Reading:
    """How one order's message is read."""

    subject: Subject
    order: Order
    steps: int
    groups: dict[str, Group]

    @staticmethod
    def of(subject: Subject, order: Order, steps: int) -> Reading:
        trainer = subject.trainer
        groups: dict[str, Group] = {}
        if trainer.codec.sends_slopes:
            groups = groups_of(
                trainer.engine, trainer.codec, order, trainer.task.head, trainer.directions
            )
        return Reading(subject, order, steps, groups)

    @property
    def solved(self) -> bool:
        """Is it one step of AdamW, in full precision?"""
        config = self.subject.config
        plain = config.codec.kind == "dense" and not config.modifiers
        return isinstance(config.client.optimiser, AdamW) and self.steps == 1 and plain

    def gradient(self, update: Update) -> Params:
        """The best estimate of the mean gradient, by parameter that was sent."""
        if update.slopes is not None:
            return self._of_slopes(update.slopes)
        return {n: self._unstepped(n, x) for n, x in (update.grad or {}).items()}

    def observed(self, update: Update) -> Tensor:
        """What a message says, [M] float64."""
        if update.slopes is not None:
            return torch.cat([self._measured(n, update.slopes[n]) for n in sorted(self.groups)])
        change = self._named(update.grad or {})
        decay = getattr(self.subject.config.client.optimiser, "weight_decay", 0.0)
        if decay and self.steps == 1:
            start = self.order.params
            change = {n: x - self._rate(n) * decay * start[n] for n, x in change.items()}
        return trees.flatten(change).double()

    def expected(self, gradient: Params) -> Tensor:
        """What it would say of one step along this gradient, up to a factor: [M] float64."""
        if self.groups:
            return torch.cat(
                [
                    self._projected(n, trees.pick(gradient, g.names))
                    for n, g in sorted(self.groups.items())
                ]
            )
        named = self._named(gradient)
        optimiser = self.subject.config.client.optimiser
        if isinstance(optimiser, AdamW):
            named = {n: g / (g.abs() + optimiser.eps) for n, g in named.items()}
        return trees.flatten({n: self._rate(n) * g for n, g in named.items()}).double()

    def _named(self, tensors: Params) -> Params:
        return {n: tensors[n] for n in self.order.assigned if n in tensors}

    def _rate(self, name: str) -> float:
        optimiser = self.subject.config.client.optimiser
        own = optimiser.head_lr is not None and name in self.subject.task.head
        return float(optimiser.head_lr) if own and optimiser.head_lr else optimiser.lr

    def _unstepped(self, name: str, change: Tensor) -> Tensor:
        """The gradient of one parameter from its change."""
        optimiser, rate = self.subject.config.client.optimiser, self._rate(name)
        if not rate:
            return torch.zeros_like(change)
        if not (isinstance(optimiser, AdamW) and self.solved):
            return change / (rate * self.steps)
        start = self.order.params[name].double()
        share = change.double() / rate - optimiser.weight_decay * start
        unsure = ROUNDING * (3 + start.abs() / rate)
        size = torch.minimum(share.abs(), 1 - unsure)
        return share.sign() * optimiser.eps * size / (1 - size)

    def _of_slopes(self, slopes: Params) -> Params:
        found: Params = {}
        for name, group in self.groups.items():
            like = trees.pick(self.order.params, group.names)
            if group.directions.exact:
                flat = slopes[name].double().mean(0)
            else:
                flat = recovered(
                    self._matrix(group, slopes[name].shape), self._measured(name, slopes[name])
                )
            found |= trees.unflatten(flat, like)
        return found

    def _looked_at(self, group: Group, steps: int, count: int) -> int:
        size = trees.size(trees.pick(self.order.params, group.names))
        return max(1, min(steps, MOST_NUMBERS // max(1, size * count)))

    def _measured(self, name: str, slopes: Tensor) -> Tensor:
        group = self.groups[name]
        if group.directions.exact:
            return slopes.double().mean(0)
        return slopes[: self._looked_at(group, len(slopes), slopes.shape[1])].double().reshape(-1)

    def _projected(self, name: str, gradient: Params) -> Tensor:
        group = self.groups[name]
        if group.directions.exact:
            return group.directions.project(gradient)
        count = group.directions.count(gradient)
        steps = self._looked_at(group, self.steps, count)
        return torch.cat([group.directions.at(t).project(gradient) for t in range(steps)])

    def _matrix(self, group: Group, shape: torch.Size) -> Tensor:
        """The directions as rows, [M, D]."""
        like = trees.pick(self.order.params, group.names)
        rows = []
        for step in range(self._looked_at(group, shape[0], shape[1])):
            along = group.directions.at(step).tangents(like, range(shape[1]))
            rows.append(torch.cat([along[n].reshape(shape[1], -1) for n in like], dim=1))
        return torch.cat(rows).double()
