"""How the contributions of one round become one descent direction.

An aggregator sees whole contributions: who, how much, every tensor by name, the run's units, a key,
its own state and the former aggregate. A parameter is aggregated over the clients that trained it,
and over nobody else: what nobody trained is absent from the result. Contributions come ordered by
client, so the result does not depend on the order of arrival.

``PerUnit`` is the base of rules over vectors: the parameters of a unit (A and B of one LoRA matrix)
are joined to one vector, so that all of them are taken from the same clients.

Legend: N clients that hold the unit, D its elements.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.settings import Choice
from forefed.core.states import State
from forefed.core.types import Contribution, Params, ServerContext, Unit

Metrics = Mapping[str, float]


class Aggregator(Choice):
    """Base of the rules by which many contributions become one."""

    individual: ClassVar[bool] = True
    """Reads single contributions (a sum that hides them is not enough)."""
    replayable: ClassVar[bool] = True
    """A function of what travels: whoever follows by records can do it again."""
    remembers: ClassVar[bool] = False
    """Reads ``ctx.previous``, which is kept for it."""

    @abstractmethod
    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        """One direction out of many.

        Args:
            cs: contributions of positive weight, by client.
            state: what this rule kept from the last round. Not changed.
            ctx: the round's.

        Returns:
            The direction (old - new) by parameter, the state to keep, and numbers for the record.
        """


class PerUnit(Aggregator):
    """Base of rules over one vector per client and unit."""

    @abstractmethod
    def combine(
        self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        """One vector [D] out of N, float64 in and out. ``state`` is this unit's."""

    def least(self) -> int:
        """Holders without which the rule cannot do what it promises."""
        return 1

    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        total: Params = {}
        new: State = {}
        few = 0
        for unit in units_of(cs, ctx.units):
            held = [c for c in cs if unit.params[0] in c.delta]
            like = trees.pick(held[0].delta, unit.params)
            vectors = [trees.flatten(trees.pick(c.delta, unit.params)).double() for c in held]
            w_N = torch.tensor([c.weight for c in held], dtype=torch.float64)
            x_ND = torch.stack(vectors)
            kept: State = {}
            if len(held) < self.least():
                few += 1
                x_D = bounded_mean(x_ND, w_N)
            else:
                prefix = f"{unit.name}/"
                own = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
                x_D, kept = self.combine(x_ND, w_N, unit, own, ctx)
            new |= {f"{unit.name}/{n}": x for n, x in kept.items()}
            total |= {n: x.to(like[n].dtype) for n, x in trees.unflatten(x_D, like).items()}
        return total, {**state, **new}, {"few_holders": float(few)} if self.least() > 1 else {}


def units_of(cs: Sequence[Contribution], units: Sequence[Unit]) -> Iterator[Unit]:
    """The units that somebody trained, as far as they travel; a parameter in none is its own."""
    present: dict[str, Tensor] = {}
    for c in cs:
        present = {**c.delta, **present}
    known: set[str] = set()
    for unit in units:
        # of a unit that is partly private or frozen some parameters travel, from all alike
        names = tuple(n for n in unit.params if n in present)
        known |= {*names}
        if names:
            yield Unit(unit.name, names, unit.depth, unit.size, unit.is_head)
    for name in present.keys() - known if known else present:
        yield Unit(name, (name,), 0, present[name].numel())


def bounded_mean(x_ND: Tensor, w_N: Tensor) -> Tensor:
    """The weighted mean of vectors that were scaled down to at most the median length: [D]."""
    norms_N = x_ND.norm(dim=1)
    bound = norms_N.quantile(0.5)
    scale_N = (bound / norms_N.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)
    return (w_N / w_N.sum()) @ (x_ND * scale_N[:, None])
