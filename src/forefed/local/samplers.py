"""The slot ``client.sampler``: which examples make the batches of a client's round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from forefed.core.settings import Choice, Registry
from forefed.core.types import ClientContext
from forefed.data.examples import ClientData, Indices

if TYPE_CHECKING:
    from forefed.local.training import LocalTraining


class Sampler(Choice):
    """Base of the ways to draw batches."""

    @abstractmethod
    def batches(
        self, settings: LocalTraining, data: ClientData, ctx: ClientContext
    ) -> list[Indices]:
        """The positions of every local step's examples."""


class Shuffled(Sampler):
    """Every example once an epoch, in batches of one size."""

    kind: Literal["shuffled"] = "shuffled"

    def batches(
        self, settings: LocalTraining, data: ClientData, ctx: ClientContext
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
        self, settings: LocalTraining, data: ClientData, ctx: ClientContext
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


SAMPLERS: Registry[Sampler] = Registry("sampler", [Shuffled, Poisson])
