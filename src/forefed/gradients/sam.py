"""The gradient at the worst point nearby (sharpness-aware minimisation, SAM).

Source: Foret et al. (arXiv 2010.01412), Algorithm 1; local steps of DFedSAM (arXiv 2302.04083).

    g1 = grad L(w);   g = grad L(w + rho g1 / |g1|)          the norm over all that is trained

One more forward and backward pass a step. Flat minima of nodes lie closer together than sharp ones.
With forward gradients the way up would be a random direction: this engine is exact backprop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core import trees
from forefed.core.types import Batch, DirectionSet, Estimate, LossFn, Params
from forefed.gradients.backprop import Backprop
from forefed.gradients.engine import GradientEngine


class Sam(GradientEngine):
    """Backprop at the worst point nearby: twice the passes, flatter minima."""

    kind: Literal["sam"] = "sam"
    rho: Annotated[float, Field(ge=0)] = 0.01
    """How far away that point lies, in the l2 norm of what is trained; 0: backprop, once."""

    source: ClassVar[str] = "Foret et al., arXiv 2010.01412"

    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        exact = Backprop(micro_batch=self.micro_batch)
        here = exact(loss, params, batch, directions, head)
        length = trees.norm(here.grad)
        if not self.rho or not 0 < length < float("inf"):
            return here
        worst = {n: x + (self.rho / length) * here.grad[n] for n, x in params.items()}
        there = exact(loss, worst, batch, directions, head)
        return replace(here, grad=there.grad, forwards=here.forwards + there.forwards)
