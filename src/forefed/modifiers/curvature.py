"""A running diagonal curvature that everybody makes of the same slopes: HiSo (arXiv 2506.02370)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core.states import State
from forefed.core.types import Params, ServerContext
from forefed.modifiers.modifier import Modifier


class Curvature(Modifier):
    """A running mean H of squared estimates; directions become H^-1/2 times random ones."""

    kind: Literal["curvature"] = "curvature"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """nu: H <- (1 - nu) H + nu estimate^2, from H = 1."""
    floor: Annotated[float, Field(gt=0)] = 1e-8
    """Least element of H (published: none, so a direction may grow without bound)."""

    source: ClassVar[str] = "HiSo, arXiv 2506.02370"
    accepts: ClassVar[tuple[str, ...]] = ("projections",)
    reads_last: ClassVar[bool] = True

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        new = dict(state)
        for name, estimate in ctx.last_gradient.items():
            former = state[name] if name in state else torch.ones_like(estimate)
            mixed = (1 - self.rate) * former + self.rate * (estimate * estimate)
            new[name] = mixed.clamp(min=self.floor)
        return total, new

    def broadcast(self, state: State) -> State:
        return state

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.directions.exact or config.directions.head_k == "all":
            yield (
                "modifiers: 'curvature' shapes random directions, which unit vectors are not; set "
                "directions.kind = 'fresh', and a number as directions.head_k"
            )
        if config.directions.lasting:
            yield (
                f"modifiers: 'curvature' changes the directions, and directions.kind = "
                f"'{config.directions.kind}' keeps them for the run; drop one"
            )
