"""How the contributions of one round become one descent direction.

An aggregator sees whole contributions: who, how much, every tensor by name, the run's units, a key,
its own state and the former aggregate. A parameter is aggregated over the clients that trained it,
and over nobody else: what nobody trained is absent from the result. Contributions come ordered by
client, so the result does not depend on the order of arrival.

``PerUnit`` is the base of rules over vectors: the parameters of a unit (A and B of one LoRA matrix)
are joined to one vector, so that all of them are taken from the same clients. ``Tolerant`` is that
of rules that bear f hostile clients among those that hold a unit.

Legend: N clients that hold the unit, D its elements.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from forefed.aggregate.vectors import capped, clipped, middle
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
    coordinatewise: ClassVar[bool] = False
    """Asks element by element what most say: of elements that most leave out, nothing is left."""
    remembers: ClassVar[bool] = False
    """Reads ``ctx.previous``, which is kept for it."""
    folds: ClassVar[bool] = False
    """Writes into the dense part beside low-rank factors (``adapter.fold``)."""
    runs: ClassVar[bool] = False
    """Is the mean of exact contributions by their examples, so that they may be added up as they
    come (``RunningSum``)."""
    any_rank: ClassVar[bool] = False
    """Takes contributions whose low-rank factors have other ranks than the server's."""

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
    """Base of rules over one vector per client and unit.

    Vectors that are not finite are dropped (``not_finite`` in the record counts them); where fewer
    clients than the rule needs hold a unit, the mean of vectors cut to their median length stands
    in for it (``few_holders`` counts these units).
    """

    @abstractmethod
    def combine(
        self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        """One vector [D] out of N, float64 in and out. ``state`` is this unit's."""

    def least(self) -> int:
        """Holders without which the rule cannot do what it promises."""
        return 1

    def attempt(
        self,
        x_ND: Tensor,
        w_N: Tensor,
        dropped: int,
        unit: Unit,
        state: State,
        ctx: ServerContext,
    ) -> tuple[Tensor, State] | None:
        """The rule over these vectors, beside which ``dropped`` others were not finite; None: too
        few are left."""
        return self.combine(x_ND, w_N, unit, state, ctx) if len(x_ND) >= self.least() else None

    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        total: Params = {}
        new: State = {}
        few = dropped = 0
        for unit in units_of(cs, ctx.units):
            held, x_ND = vectors_of(cs, unit)
            bad = len([c for c in cs if unit.params[0] in c.delta]) - len(held)
            dropped += bad
            if not held:
                continue
            w_N = torch.tensor([c.weight for c in held], dtype=torch.float64)
            prefix = f"{unit.name}/"
            own = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
            done = self.attempt(x_ND, w_N, bad, unit, own, ctx)
            if done is None:
                few += 1
            x_D, kept = (bounded_mean(x_ND, w_N), State()) if done is None else done
            new |= {f"{unit.name}/{n}": x for n, x in kept.items()}
            like = trees.pick(held[0].delta, unit.params)
            total |= {n: x.to(like[n].dtype) for n, x in trees.unflatten(x_D, like).items()}
        metrics = {"few_holders": float(few)} if self.least() > 1 else {}
        if dropped:
            metrics["not_finite"] = float(dropped)
        return total, {**state, **new}, metrics


def share_of(hostile: int | float, n: int) -> int:
    """A number of clients, or a share of n."""
    return hostile if isinstance(hostile, int) else math.floor(hostile * n + 1e-9)


Hostile = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=0.5)]


class Tolerant(PerUnit):
    """Base of rules that bear f hostile clients among those that hold a unit."""

    f: Hostile = 0.2
    """Hostile clients that are assumed: a number, or a share of those that hold the unit (0.2: a
    fifth, at least one, and at most what the rule bears among so many)."""

    per_hostile: ClassVar[int] = 2
    """The rule needs ``per_hostile * f + beside`` holders."""
    beside: ClassVar[int] = 1

    @abstractmethod
    def tolerate(
        self, x_ND: Tensor, f: int, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        """One vector [D] out of N of which f may be anything. Clients count equally: what they say
        of their examples is a claim."""

    def hostile(self, n: int) -> int:
        """f among n holders."""
        if isinstance(self.f, int):
            return self.f
        return max(1, min(share_of(self.f, n), (n - self.beside) // self.per_hostile))

    def least(self) -> int:
        f = self.f if isinstance(self.f, int) else 1
        return self.per_hostile * f + self.beside

    def attempt(
        self,
        x_ND: Tensor,
        w_N: Tensor,
        dropped: int,
        unit: Unit,
        state: State,
        ctx: ServerContext,
    ) -> tuple[Tensor, State] | None:
        # what was not finite came from hostile clients: of those that may be left, so many fewer
        f = max(0, self.hostile(len(x_ND) + dropped) - dropped)
        if len(x_ND) < self.per_hostile * f + self.beside:
            return None
        return self.tolerate(x_ND, f, unit, state, ctx)

    def combine(
        self, x_ND: Tensor, w_N: Tensor, unit: Unit, state: State, ctx: ServerContext
    ) -> tuple[Tensor, State]:
        return self.tolerate(x_ND, self.hostile(len(x_ND)), unit, state, ctx)


def vectors_of(cs: Sequence[Contribution], unit: Unit) -> tuple[list[Contribution], Tensor]:
    """Whoever holds the unit with finite numbers, and the unit's vectors [N, D] in float64."""
    held, vectors = [], []
    for c in cs:
        if unit.params[0] in c.delta:
            x_D = trees.flatten(trees.pick(c.delta, unit.params)).double()
            if bool(torch.isfinite(x_D).all()):
                held.append(c)
                vectors.append(x_D)
    return held, torch.stack(vectors) if vectors else torch.zeros(0, 0, dtype=torch.float64)


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
    """The weighted mean of vectors that were scaled down to at most the median length: [D]. No
    weight counts for more than three median ones."""
    w_N = capped(w_N)
    return (w_N / w_N.sum()) @ clipped(x_ND, middle(x_ND.norm(dim=1)))
