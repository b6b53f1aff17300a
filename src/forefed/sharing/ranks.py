"""Clients of different ranks: client c trains the first ``ranks[c % len(ranks)]`` rows of A and
columns of B of every adapted matrix, and receives and sends no others. Its memory and its bytes are
those of its rank.

Sources: HetLoRA (arXiv 2401.06432), FlexLoRA (arXiv 2402.11505), FLoRA (arXiv 2409.05976), which
differ in how such updates become one (``aggregate/``). Departure: one factor s on B A for all
ranks, that of the run's adapter, so that a client's first columns mean the same to everybody
(published: alpha_i / r_i, held constant by alpha_i = 2 r_i).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from forefed.core.errors import ProtocolError, UserError
from forefed.core.lora import is_a, is_b
from forefed.core.sizes import format_bytes
from forefed.core.types import Params, Unit
from forefed.sharing.factors import OfFactors
from forefed.sharing.sharing import Split, names_of

WHOLE = sys.maxsize
"""Where nobody has planned: as many as there are."""


class Ranks(OfFactors):
    """Everything is shared, to each client as far as its rank goes."""

    kind: Literal["ranks"] = "ranks"
    ranks: (
        Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | Literal["auto"]
    ) = (2, 4, 8)
    """By client number, over and over; none above ``adapter.r``. "auto": by its memory, the largest
    of ``adapter.r``, its half and so on with which a step fits, as the planner measures it; in a
    rehearsal ``memory`` says what clients have, and the step is any with an exact gradient, between
    machines every site says it in its site.toml, and the step is the configured engine's
    (published: by "system capabilities", not said how)."""

    source: ClassVar[str] = "HetLoRA, arXiv 2401.06432"

    _rank_of: Callable[[int], int] | None = PrivateAttr(default=None)
    _costs: tuple[tuple[int, int], ...] = PrivateAttr(default=())
    """Ranks from the largest down, with the bytes of a step in each; where sites say theirs."""

    @property
    def by_memory(self) -> bool:
        return self.ranks == "auto"

    def planned(self, rank_of: Callable[[int], int]) -> Ranks:
        """The same, with the ranks that were planned for every client."""
        knowing = self.model_copy()
        knowing._rank_of = rank_of
        return knowing

    def costing(self, costs: Sequence[tuple[int, int]]) -> Ranks:
        """The same, with what a step takes: ranks from the largest down, and bytes."""
        knowing = self.model_copy()
        knowing._costs = tuple(costs)
        return knowing

    def hearing(self, memory: Mapping[int, int]) -> Ranks:
        if not self._costs:
            return self
        return self.planned(lambda client: self.fitting(memory[client]))

    def fitting(self, memory: int) -> int:
        """The largest rank whose step fits; 0: none does."""
        return next((rank for rank, cost in self._costs if cost <= memory), 0)

    def granted(self, memory: int) -> str:
        rank = self.fitting(memory)
        if not rank:
            least = min(cost for _, cost in self._costs)
            raise ProtocolError(
                f"its memory = {format_bytes(memory)} is less than the {format_bytes(least)} that "
                "a step takes at the smallest rank"
            )
        return f"rank {rank} in {format_bytes(memory)}"

    def split(self, units: Sequence[Unit], round: int) -> Split:
        return Split(names_of(units))

    def differs(self, units: Sequence[Unit]) -> bool:
        return any(is_a(n) for n in names_of(units))

    def check(self, units: Sequence[Unit], params: Params) -> None:
        super().check(units, params)
        if self.ranks == "auto":
            return
        largest, r = max(self.ranks), max(len(params[n]) for n in names_of(units) if is_a(n))
        if largest > r:
            raise UserError(
                f"sharing.ranks: {largest} is more than adapter.r = {r}, the rank of the server's "
                "own factors; set adapter.r to the largest"
            )

    def form(self, client: int) -> int:
        if self.ranks != "auto":
            return self.ranks[client % len(self.ranks)]
        return WHOLE if self._rank_of is None else self._rank_of(client)

    def form_of(self, client: int, params: Params) -> int:
        if self.ranks != "auto":
            return self.form(client)
        return max((len(x) for n, x in params.items() if is_a(n)), default=WHOLE)

    def sent(self, params: Params, form: int) -> Params:
        return {
            n: x[:form].contiguous() if is_a(n) else x[:, :form].contiguous() if is_b(n) else x
            for n, x in params.items()
        }

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        sites = config.partition.kind == "sites"
        if self.ranks == "auto" and sites and config.client.batch_size == "all":
            yield (
                "sharing.ranks = 'auto': what a step takes depends on its rows, and of how many "
                "rows client.batch_size = 'all' is at a site nobody else knows; give a number"
            )
        if self.ranks == "auto" and not config.memory and not sites:
            yield (
                "sharing.ranks = 'auto' goes by the clients' memory; name it (memory = [{budget = "
                "'1GB', share = 0.5}, ...]), or give the ranks"
            )
        if not config.aggregator.any_rank:
            yield (
                f"sharing.kind = 'ranks': aggregator.kind = '{config.aggregator.kind}' takes "
                "updates of one shape; set aggregator.kind = 'flexlora', 'flora' or 'hetlora'"
            )
        if config.attack.kind != "none":
            yield (
                f"sharing.kind = 'ranks': attack.kind = '{config.attack.kind}' is made of updates "
                "of one shape; drop it"
            )
