"""Slopes by central differences of the loss: two forward passes a slope, no AD at all.

Source: SPSA (Spall 1992) as used by MeZO (arXiv 2305.17333), BAFFLE (arXiv 2301.12195) and FwdLLM
(arXiv 2308.13894). The slope has an error of order eps^2 plus rounding / eps: with float32 losses
1e-2 is about the best eps (2.5e-5 of the gradient's norm on logistic loss); in bfloat16 no eps
works. Perturbs copies: adding and subtracting in place drifts in low precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core import trees
from forefed.core.types import AtPoints, Batch, DirectionSet, LossFn, Params, at_points_of
from forefed.gradients.engine import SlopeEngine, Slopes, value_and_grad
from forefed.gradients.without_torch import why_not

ELEMENTS_AT_ONCE = 1 << 20
"""Of the directions of one call, where a loss takes many points."""


class FiniteDifference(SlopeEngine):
    """Zeroth order: K central differences per step, memory of inference."""

    kind: Literal["finite_difference"] = "finite_difference"
    eps: Annotated[float, Field(gt=0)] = 1e-2
    """Half the distance of the two losses, in units of the parameters."""
    runtime: Literal["torch", "onnx"] = "torch"
    """"onnx": every client of a rehearsal is a process without torch (forefed.slim; extra "onnx").
    """

    source: ClassVar[str] = "MeZO, arXiv 2305.17333; BAFFLE, arXiv 2301.12195"
    by_values: ClassVar[bool] = True

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if self.runtime == "onnx":
            yield from (f"engine.runtime = 'onnx': {why}" for why in why_not(config))

    def slopes(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Slopes:
        grad: Params = {}
        centre: float | None = None
        if exact:
            centre, grad = value_and_grad(loss, exact, body, batch)
        many = at_points_of(loss)
        with torch.no_grad():
            found = list(
                self._one_by_one(loss, body, exact, batch, directions)
                if many is None
                else self._at_once(many, body, exact, batch, directions)
            )
        slopes = [(above - below) / (2 * self.eps) for above, below in found]
        losses = [(above + below) / 2 for above, below in found]
        value = sum(losses) / len(losses) if centre is None else centre
        return Slopes(value, torch.tensor(slopes, dtype=torch.float64), grad)

    def _one_by_one(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Iterator[tuple[float, float]]:
        """The losses on either side along every direction."""
        for k in range(directions.count(body)):
            direction = directions.tangents(body, range(k, k + 1))
            above, below = (
                float(loss({**exact, **_shifted(body, direction, sign * self.eps)}, batch))
                for sign in (1, -1)
            )
            yield above, below

    def _at_once(
        self, many: AtPoints, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Iterator[tuple[float, float]]:
        """The same, of a loss that takes many points in one call."""
        count = directions.count(body)
        some = max(1, ELEMENTS_AT_ONCE // trees.size(body))
        for start in range(0, count, some):
            ks = range(start, min(start + some, count))
            tangents = directions.tangents(body, ks)
            points = {
                n: torch.cat([x + sign * self.eps * tangents[n] for sign in (1, -1)])
                for n, x in body.items()
            }
            points |= {n: x.expand(2 * len(ks), *x.shape) for n, x in exact.items()}
            above, below = many(points, batch).split(len(ks))
            yield from zip(above.tolist(), below.tolist(), strict=True)

    def passes(self, k: int, with_head: bool) -> float:
        return 2.0 * k + (1.0 if with_head else 0.0)


def _shifted(params: Params, direction: Params, by: float) -> Params:
    return {n: x + by * direction[n][0] for n, x in params.items()}
