"""The weighted mean (FedAvg, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from forefed.aggregate.holders import Rule
from forefed.core.types import ServerState


class Mean(Rule):
    """Mean weighted by example counts."""

    kind: Literal["mean"] = "mean"
    source: ClassVar[str] = "McMahan et al., arXiv 1602.05629"

    def __call__(
        self, state: ServerState, ids: Sequence[int], x_ND: Tensor, w_N: Tensor
    ) -> tuple[ServerState, Tensor]:
        return state, (w_N / w_N.sum()) @ x_ND
