"""Krum: Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent"
(NeurIPS 2017), section 4.

Score of a vector: the sum of its squared distances to the n - f - 2 nearest *other* vectors. (Some
public code counts the distance of 0 to itself among them, and so sees one neighbour fewer.) Of
equal scores the lowest client's counts, as published.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.aggregator import Tolerant
from forefed.aggregate.vectors import distances
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


def scores(squared_NN: Tensor, f: int) -> Tensor:
    """Krum's scores [N] from the squared distances; one neighbour counts at least."""
    n = len(squared_NN)
    count = min(max(n - f - 2, 1), n - 1)
    others = squared_NN + torch.diag(torch.full((n,), torch.inf, dtype=squared_NN.dtype))
    return others.sort(dim=1).values[:, :count].sum(dim=1)


class Krum(Tolerant):
    """The one vector with the nearest neighbours: f of 2 f + 3 clients cannot have theirs taken."""

    kind: Literal["krum"] = "krum"
    source: ClassVar[str] = "Blanchard et al., NeurIPS 2017"
    beside: ClassVar[int] = 3

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        return x_ND[int(scores(distances(x_ND).square(), f).argmin())], state
