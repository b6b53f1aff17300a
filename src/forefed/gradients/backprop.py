"""Exact gradients by reverse-mode AD: with all activations kept, or with recomputation.

``checkpointed`` keeps the inputs of the model's blocks only and runs each block again in the
backward pass (Chen et al., arXiv 1604.06174): the honest rival of every engine that saves memory
(arXiv 2506.21833). Same mathematics, so both share one function; the loss differs
(``Task.loss_recomputed``).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.core.types import Batch, DirectionSet, Estimate, Losses, LossFn, Params
from forefed.gradients.engine import Accumulator, GradientEngine, micro_batches, value_and_grad


class Backprop(GradientEngine):
    """Exact gradient; keeps all activations."""

    kind: Literal["backprop"] = "backprop"
    forward_equivalents: ClassVar[float] = 2.0  # one forward, one backward (frozen base: B = F)

    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        mean_loss, grad = 0.0, Accumulator()
        for part, share in micro_batches(loss, batch, self.micro_batch):
            part_loss, part_grad = value_and_grad(loss, params, {}, part)
            mean_loss += share * part_loss
            grad.add(part_grad, share)
            del part_grad  # or it would stay through the next micro-batch
        return Estimate(mean_loss, grad.total, None, self.forward_equivalents * batch.size)


class Checkpointed(Backprop):
    """Exact gradient by backprop with recomputation; keeps block inputs and one block."""

    kind: Literal["checkpointed"] = "checkpointed"  # type: ignore[assignment]
    source: ClassVar[str] = "Chen et al., arXiv 1604.06174"
    forward_equivalents: ClassVar[float] = 3.0  # two forwards, one backward

    def loss_of(self, task: Losses) -> LossFn:
        return task.loss_recomputed
