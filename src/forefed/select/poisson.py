"""Poisson sampling: every member by itself with probability q, from the server's secret.

Source: McMahan et al., "Learning differentially private recurrent language models" (arXiv
1710.06963), Algorithm 1. Privacy amplification by sampling (Abadi et al., arXiv 1607.00133; Mironov
et al., arXiv 1908.10530) is proven for this way of drawing, and for whoever does not know who was
drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from forefed.core.types import ServerContext
from forefed.select.select import Selector


class Poisson(Selector):
    """Every member with probability cohort / members, in secret; a cohort may be empty."""

    kind: Literal["poisson"] = "poisson"
    source: ClassVar[str] = "McMahan et al., arXiv 1710.06963"

    def select(self, members: Sequence[int], size: int, ctx: ServerContext) -> list[int]:
        q = self.probability(len(members), size)
        if q == 1:
            return [*members]
        words = ctx.secret.fold("cohort").blocks(0, -(-len(members) // 2)).astype(np.uint64)
        drawn = words.reshape(-1, 2)[: len(members)]
        below = np.uint64(int(q * 2**64))
        numbers = np.flatnonzero((drawn[:, 0] << np.uint64(32) | drawn[:, 1]) < below)
        return [members[i] for i in numbers.tolist()]

    def probability(self, members: int, size: int) -> float:
        return min(1.0, size / members) if members else 0.0

    def conflicts(self, config: Any) -> Iterator[str]:
        if config.oversampling:
            yield (
                "select.kind = 'poisson' draws a random number of clients and hears all of them; "
                "leave oversampling at 0"
            )
