"""Bulyan: El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in
Byzantium" (ICML 2018, arXiv 1802.07927), over Krum.

    select   n - 2 f vectors, each by Krum among those that are left
    average  per coordinate the n - 4 f values nearest to the median of the selected

Of two values as far from the median on either side the smaller counts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.aggregator import Tolerant
from forefed.aggregate.krum import scores
from forefed.aggregate.vectors import coordinate_median, distances
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class Bulyan(Tolerant):
    """Krum's choice again and again, then the values around the median: n must be 4 f + 3."""

    kind: Literal["bulyan"] = "bulyan"
    coordinatewise: ClassVar[bool] = True
    source: ClassVar[str] = "El Mhamdi et al., arXiv 1802.07927"
    per_hostile: ClassVar[int] = 4
    beside: ClassVar[int] = 3

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        n = len(x_ND)
        squared_NN = distances(x_ND).square()
        left, selected = list(range(n)), list[int]()
        while len(selected) < n - 2 * f:
            among = squared_NN[left][:, left]
            selected.append(left.pop(int(scores(among, f).argmin())))
        chosen = x_ND[selected].sort(dim=0).values
        far = (chosen - coordinate_median(chosen)).abs()
        nearest = far.argsort(dim=0, stable=True)[: n - 4 * f]
        return torch.gather(chosen, 0, nearest).mean(dim=0), state
