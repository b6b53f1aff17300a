"""The engine that is chosen by measuring: stands in a configuration until the run is built."""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.core.types import Batch, DirectionSet, Estimate, LossFn, Params
from forefed.gradients.engine import GradientEngine


class Auto(GradientEngine):
    """The planner's choice for the memory of each client (settings ``memory``)."""

    kind: Literal["auto"] = "auto"
    micro_batch: Literal["auto"] = "auto"
    """The planner's choice too, as are ``directions.kind`` "fresh" or "basis", and their number."""
    undecided: ClassVar[bool] = True

    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        raise AssertionError(
            "engine.kind = 'auto' is resolved before training (run/client_engines.py)"
        )
