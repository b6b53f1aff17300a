"""Directions out of one pool that serves the whole run.

Source: FedKSeed (arXiv 2312.06353). Client and server draw alike from the run's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.core.keys import Key
from forefed.core.types import Order, Params
from forefed.directions.fresh import RandomKind
from forefed.directions.sets import RandomDirections, fields_of


@dataclass(frozen=True)
class PooledDirections(RandomDirections):
    """Directions out of a pool of ``pool`` that serves the whole run (``round`` and ``stream`` 0).

    Which ones a step walks along is drawn uniformly by ``draw``, the key of the client's round. All
    movement stays in the ``pool`` dimensions that the pool spans: sums of slopes, one for each
    member, say where the parameters have come to.
    """

    pool: int = field(kw_only=True)
    draw: Key = field(kw_only=True)

    @cached_property
    def members(self) -> list[int]:
        """Which of the pool this step walks along: [k]."""
        return [int(j) for j in self.draw.fold(self.step).integers(self.k, self.pool)]

    def places(self, ks: Sequence[int]) -> tuple[int, Sequence[int]]:
        return 0, [self.members[k] for k in ks]

    def sums(self, slopes_TK: Tensor) -> Tensor:
        """What T local steps add to each member: [pool] float64, so that the steps' estimates sum
        to sum_j sums[j] v_j. Slopes that are not finite are left out, as ``combine`` does."""
        sums = torch.zeros(self.pool, dtype=torch.float64)
        for step, slopes_K in enumerate(slopes_TK.double()):
            finite = torch.isfinite(slopes_K)
            members = torch.tensor(self.at(step).members)[finite]
            # in the order of k: a member may be drawn twice
            for j, slope in zip(members.tolist(), slopes_K[finite].tolist(), strict=True):
                sums[j] += slope / len(members)
        return sums

    def moved(self, like: Params, sums: Tensor) -> Params:
        """sum_j sums[j] v_j over ``like``, in the order of j."""
        whole = RandomDirections(**{**fields_of(self), "k": self.pool, "step": 0})
        mean = whole.combine({n: x.double() for n, x in like.items()}, sums)
        assert mean is not None, "sums are finite"
        return {n: self.pool * x for n, x in mean.items()}


class Pool(RandomKind):
    """Directions out of one pool that serves the whole run, drawn anew in every step."""

    kind: Literal["pool"] = "pool"
    size: Annotated[int, Field(ge=1, le=2**31)] = 1024
    """Members of the pool (FedKSeed); all movement stays in so many dimensions."""

    source: ClassVar[str] = "FedKSeed, arXiv 2312.06353"
    lasting: ClassVar[bool] = True

    def chosen(
        self, fresh: RandomDirections, order: Order, names: Sequence[str], projected: bool
    ) -> RandomDirections:
        draw = Key(fresh.run).fold("pool", fresh.tag, fresh.round, fresh.stream)
        whole_run = replace(fresh, round=0, stream=0, tag="G")
        return PooledDirections(**fields_of(whole_run), pool=self.size, draw=draw)
