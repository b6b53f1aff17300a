"""The slot ``client.sampler``: which examples make the batches of a client's round."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forefed.core.settings import Choice, Registry
from forefed.core.types import ClientContext
from forefed.data.examples import ClientData, Indices

if TYPE_CHECKING:
    from forefed.local.training import LocalTraining


Losses = Callable[[Indices], NDArray[np.float64]]


class Sampler(Choice):
    """Base of the ways to draw batches."""

    @abstractmethod
    def batches(
        self, settings: LocalTraining, data: ClientData, ctx: ClientContext, losses: Losses
    ) -> list[Indices]:
        """The positions of every local step's examples.

        Args:
            losses: of the examples at some positions, under the parameters that were sent; a
                forward pass over them, and nobody else's to see.
        """


class Shuffled(Sampler):
    """Every example once an epoch, in batches of one size."""

    kind: Literal["shuffled"] = "shuffled"

    def batches(
        self, settings: LocalTraining, data: ClientData, ctx: ClientContext, losses: Losses
    ) -> list[Indices]:
        rows, key = data.train, ctx.key
        size = len(rows) if settings.batch_size == "all" else settings.batch_size
        plan: list[Indices] = []
        for epoch in range(settings.epochs if len(rows) else 0):
            if settings.max_steps is not None and len(plan) >= settings.max_steps:
                break  # the epochs may be any number
            shuffled = rows[key.fold("data", epoch).permutation(len(rows))]
            if settings.group_by_length:
                lengths = data.examples.lengths()[shuffled]
                shuffled = shuffled[np.argsort(lengths, kind="stable")]
            batches = [shuffled[i : i + size] for i in range(0, len(rows), size)]
            order_of_batches = key.fold("batches", epoch).permutation(len(batches))
            plan += [batches[i] for i in order_of_batches]
        return plan[: settings.max_steps]


class Poisson(Sampler):
    """Every example with one probability, in secret and anew in every step; batches may be empty.

    ``client.max_steps`` says how many steps a round has; ``client.batch_size`` and
    ``group_by_length`` are not read: a batch has rate x rows examples on average.
    """

    kind: Literal["poisson"] = "poisson"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """q, the same for all clients, so that it tells nothing of their rows."""

    source: ClassVar[str] = "Abadi et al., arXiv 1607.00133"

    def batches(
        self, settings: LocalTraining, data: ClientData, ctx: ClientContext, losses: Losses
    ) -> list[Indices]:
        rows = data.train
        if not len(rows) or settings.max_steps is None:
            return []
        secret = ctx.secret.fold("batches")
        below = min(int(self.rate * 2**64), 2**64 - 1)
        plan = []
        for step in range(settings.max_steps):
            words = secret.blocks(0, -(-len(rows) // 2), step).astype(np.uint64).reshape(-1, 2)
            drawn = words[: len(rows), 0] << np.uint64(32) | words[: len(rows), 1]
            plan.append(rows[(drawn < np.uint64(below)) | (self.rate == 1)])
        return plan

    def conflicts(self, config: Any) -> Iterator[str]:
        if config.client.epochs != 1 or config.client.max_steps is None:
            yield (
                "client.sampler.kind = 'poisson' makes as many steps as client.max_steps says, and "
                "knows no epochs; set client.max_steps, and leave client.epochs at 1"
            )


class Curriculum(Sampler):
    """Easy examples first, by the loss under the parameters that were sent; all of them later on.

    Step s of S draws from the first g(s) examples in the order of their loss, at least 32,
    reshuffled at every pass over them. Steps are as many as without. Scores never leave the client.

    Departures: the scores are those of the model that was sent (published: also of a local or an
    expert model); clients themselves are not ordered, as their scores would have to be sent.
    """

    kind: Literal["curriculum"] = "curriculum"
    order: Literal["easy", "hard", "random"] = "easy"
    """"hard": the largest loss first (wrong labels look hard); "random": by chance, a control."""
    pacing: Literal["linear", "quadratic", "root", "exponential", "step"] = "linear"
    """How the part in use grows."""
    begin: Annotated[float, Field(gt=0, le=1)] = 0.2
    """b: the part of the examples that is in use at first; 1: all, as without."""
    whole: Annotated[float, Field(gt=0, le=1)] = 0.8
    """a: the part of the steps after which all are in use."""

    source: ClassVar[str] = "Vahidian et al., arXiv 2212.12712"

    def size(self, count: int, step: int, steps: int) -> int:
        """How many of ``count`` examples are in use at this step."""
        done = step / (self.whole * steps)
        if done >= 1:
            return count
        grown = {
            "linear": done,
            "quadratic": done**2,
            "root": done**0.5,
            "exponential": (math.exp(10 * done) - 1) / (math.exp(10) - 1),
            "step": 0.0,
        }[self.pacing]
        in_use = round(count * (self.begin + (1 - self.begin) * grown))
        return min(count, max(LEAST, in_use))

    def batches(
        self, settings: LocalTraining, data: ClientData, ctx: ClientContext, losses: Losses
    ) -> list[Indices]:
        plain = Shuffled().batches(settings, data, ctx, losses)
        if self.begin == 1 or not plain:
            return plain
        rows, key = data.train, ctx.key.fold("curriculum")
        if self.order == "random":
            ordered = rows[key.fold("order").permutation(len(rows))]
        else:
            sign = 1 if self.order == "easy" else -1
            ordered = rows[np.argsort(sign * losses(rows), kind="stable")]
        size = len(rows) if settings.batch_size == "all" else settings.batch_size
        plan, waiting, passes = [], rows[:0], 0
        for step in range(len(plain)):
            in_use = self.size(len(rows), step, len(plain))
            if len(waiting) < min(size, in_use):
                waiting, passes = ordered[:in_use][key.fold(passes).permutation(in_use)], passes + 1
            plan.append(waiting[:size])
            waiting = waiting[size:]
        return plan

    def conflicts(self, config: Any) -> Iterator[str]:
        if any(m.private for m in config.modifiers):
            yield (
                "client.sampler.kind = 'curriculum' chooses examples by their loss, for which no "
                "privacy is accounted; set client.sampler.kind = 'poisson'"
            )


LEAST = 32
"""Examples in use at least, as in the authors' code."""

SAMPLERS: Registry[Sampler] = Registry("sampler", [Shuffled, Poisson, Curriculum])
