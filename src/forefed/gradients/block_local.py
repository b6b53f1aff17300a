"""Block-local learning: the model in parts, each by a loss of its own; no backward pass runs
through the whole, and the activations of one part are kept at a time.

Source: MAN, momentum auxiliary networks (Su et al., ECCV 2024, arXiv 2407.05638).

    part j      its loss is that of the model's end on what it hands over, by way of one block more
                whose adapter is a slow copy of the next part's
    copy        <- ema copy + (1 - ema) adapter          in every step

Departures, for language models: no reconstruction; no head and no further layer of a part's own
(published: a network; here a copy of the model's end serves); copies of adapters, not of layers.

Local losses are not the loss: what a part learns is to be read by the model's end, not to serve the
parts behind it. With one part it is backprop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.states import State
from forefed.core.types import (
    Batch,
    DirectionSet,
    Estimate,
    Losses,
    LossFn,
    Params,
    locally_of,
)
from forefed.gradients.engine import Accumulator, GradientEngine, micro_batches


class BlockLocal(GradientEngine):
    """Backprop inside parts of the model, each with a loss of its own (MAN)."""

    kind: Literal["block_local"] = "block_local"
    parts: Annotated[int, Field(ge=1)] = 2
    """Of about as many blocks each. 1: backprop."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """What the copies keep of themselves in a step."""

    source: ClassVar[str] = "MAN, arXiv 2407.05638"
    remembers: ClassVar[bool] = True

    _copies: State = PrivateAttr(default_factory=dict)

    def recalling(self, kept: State, key: Key) -> GradientEngine:
        one = self.model_copy()
        one._copies = kept
        return one

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.adapter.kind == "tinylora":
            yield (
                "engine.kind = 'block_local': numbers of adapter.kind = 'tinylora' belong to many "
                "blocks; set adapter.kind = 'lora'"
            )
        if any(m.per_example for m in config.modifiers):
            yield "engine.kind = 'block_local' sees whole batches; drop 'dp_example'"

    def loss_of(self, task: Losses) -> LossFn:
        return task.loss_recomputed  # which knows its blocks

    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        locally = locally_of(loss)
        if locally is None:
            raise UserError(
                "engine.kind = 'block_local': this loss has no parts (a loss of your own needs an "
                "attribute 'locally', core/types.py); take engine = 'backprop'"
            )
        copies = {n: self._copies.get(n, x.detach()) for n, x in params.items()}
        mean_loss, total = 0.0, Accumulator()
        for part, share in micro_batches(loss, batch, self.micro_batch):
            leaves = {n: x.detach().requires_grad_() for n, x in params.items()}
            grad = {n: torch.zeros_like(x) for n, x in params.items()}
            value = torch.zeros(())
            with torch.enable_grad():
                for value in locally(leaves, part, self.parts, copies):
                    found = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
                    for n, g in zip(leaves, found, strict=True):
                        grad[n] = grad[n] if g is None else grad[n] + g
                    value = value.detach()
            mean_loss += share * float(value)
            total.add(grad, share)
        kept = {n: self.ema * copies[n] + (1 - self.ema) * x.detach() for n, x in params.items()}
        passes = 2.0 + (self.parts > 1)  # a block more for each part, and the model's end
        return Estimate(mean_loss, total.total, None, passes * batch.size, {}, kept)
