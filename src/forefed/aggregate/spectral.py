"""Filtering by spectrum: the filter of Diakonikolas et al., "Being robust (in high dimensions) can
be practical" (ICML 2017, arXiv 1703.00893), as a rule: hostile vectors stand out along the
direction in which the vectors differ most, and once the worst is gone, it is found anew.

    f times: centre what is left; v its top singular vector; the vector with the largest part along
    v goes

The result is the mean of the n - f that are left. Departures: one vector goes at a time and f in
all (published: at random, until the variance is as small as it is known to be). DnC (``dnc``) takes
all f along one direction, so that liars in several directions are left.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.aggregator import Tolerant
from forefed.core.states import State
from forefed.core.types import ServerContext, Unit


class Spectral(Tolerant):
    """Mean without the f vectors that stand out most, one after the other."""

    kind: Literal["spectral"] = "spectral"
    source: ClassVar[str] = "Diakonikolas et al., arXiv 1703.00893"

    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        centred = x_ND - x_ND.mean(dim=0)
        products_NN = centred @ centred.T  # of any subset, they are centred anew below
        left = list(range(len(x_ND)))
        for _ in range(f):
            among = products_NN[left][:, left]
            among = among - among.mean(dim=0) - among.mean(dim=1, keepdim=True) + among.mean()
            along = torch.linalg.eigh(among).eigenvectors[:, -1].abs()
            left.pop(int(along.argmax()))
        return x_ND[left].mean(dim=0), state
