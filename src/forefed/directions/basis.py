"""Unit vectors: what a client's slopes say is its gradient (SPRY as it is by default).

Source: ours (low-dimensional adapters make as many slopes as a client has numbers affordable).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.core.types import Order
from forefed.directions.directions import Directions, StepDirections
from forefed.directions.sets import BasisDirections


class Basis(Directions):
    """The unit vectors of a client's own parameters: as many slopes as elements, exact."""

    kind: Literal["basis"] = "basis"

    exact: ClassVar[bool] = True

    def of(
        self,
        order: Order,
        names: Sequence[str] | None = None,
        *,
        projected: bool = False,
        parts: int = 1,
    ) -> StepDirections:
        return BasisDirections()
