"""Training the classification head alone, at the memory of inference.

The head's gradient needs the last hidden state and no backward pass through the body. The same
computation joins every estimating engine (``head = "exact"``), so that the head is never perturbed:
its gradient was 16,000 times that of all LoRA parameters (squared norm) at the start of a run, and
an estimate of both together drowns the adapters in the head's noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from forefed.core.types import Batch, DirectionSet, Estimate, LossFn, Params
from forefed.gradients.engine import GradientEngine, exact_head


class ExactHead(GradientEngine):
    """Exact gradient of the classification head only; memory of inference."""

    kind: Literal["exact_head"] = "exact_head"

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.adapter.kind != "head":
            yield (
                "engine.kind = 'exact_head' trains the head alone; set adapter.kind = 'head', or "
                "another engine"
            )

    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        return exact_head(loss, params, batch, self.micro_batch)
