"""Random directions, new ones in every step; and what all kinds of random ones have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from forefed.core.keys import Distribution
from forefed.core.types import Order
from forefed.directions.directions import Count, Directions, StepDirections


class RandomKind(Directions):
    """Base of the kinds whose directions are drawn."""

    k: Count | None = None
    """How many a step has. None: 1 where an engine walks along them, 16 where an exact gradient is
    projected on them."""
    distribution: Distribution = "rademacher"
    """Of their elements: signs, or Gaussian values as in the papers."""
    clamp: Annotated[float, Field(ge=0)] = 10.0
    """Slopes found by an engine are clamped to this multiple of the running median of |slope|; 0:
    never."""

    def of(
        self,
        order: Order,
        names: Sequence[str] | None = None,
        *,
        projected: bool = False,
        parts: int = 1,
    ) -> StepDirections:
        names = order.assigned if names is None else names
        k = self.k or (PROJECTIONS if projected else 1)
        return self.drawn(order, names, k * parts, self.distribution, projected)

    @property
    def slope_bound(self) -> float:
        return self.clamp


PROJECTIONS = 16
"""Directions on which an exact gradient is projected, where nothing else is said."""


class Fresh(RandomKind):
    """New directions in every step, from the run's key."""

    kind: Literal["fresh"] = "fresh"


FRESH = Fresh()
