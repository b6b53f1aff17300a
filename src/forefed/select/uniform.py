"""A cohort of fixed size (FedAvg, arXiv 1602.05629, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.core.types import ServerContext
from forefed.select.select import Selector


class Uniform(Selector):
    """So many members as wanted, without replacement, from the public key."""

    kind: Literal["uniform"] = "uniform"
    source: ClassVar[str] = "McMahan et al., arXiv 1602.05629"

    def select(self, members: Sequence[int], size: int, ctx: ServerContext) -> list[int]:
        numbers = ctx.key.fold("cohort").choice(len(members), min(size, len(members)))
        return [members[i] for i in numbers]
