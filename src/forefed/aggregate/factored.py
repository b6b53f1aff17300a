"""Base of the rules for low-rank updates B A that look at products, not at A and B by themselves.

FedIT averages A and B apart, and misses the mean of the products by a covariance:

    mean(B) mean(A) - sum_i p_i B_i A_i = - sum_i p_i (B_i - mean(B)) (A_i - mean(A))

of relative size sqrt(1 - 1/n) for n independent adapters (``missed`` measures it, whatever the
rule). What belongs to no matrix of which both factors are known (the head) is averaged.

Legend: O outputs, I inputs, r rank, R the sum of the clients' ranks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from forefed.aggregate.aggregator import Aggregator, Metrics
from forefed.aggregate.mean import Mean
from forefed.core.lora import Factors, factors_of, norm_of_product, stacked
from forefed.core.states import State
from forefed.core.types import Contribution, Params, ServerContext

Pair = tuple[Tensor, Tensor]
"""A [r, I] and B [O, r] of one client."""


@dataclass(frozen=True)
class Held:
    """One matrix of a round: what its holders ended with."""

    at: Factors
    old: Pair
    """What was sent out."""
    own: Sequence[Pair]
    """Of each holder, float64; ranks may differ."""
    shares: Sequence[float]
    """p_i, by examples; their sum is 1."""

    def mean(self) -> Pair:
        """A and B averaged apart, float64; of holders of one rank."""
        weighed = list(zip(self.shares, self.own, strict=True))
        a, b = (sum((p * x[i] for p, x in weighed), 0 * self.old[i].double()) for i in (0, 1))
        return a, b

    def stacked(self) -> Pair:
        """A_s [R, I] and B_s [O, R], whose product is the mean of the products."""
        b_OR, a_RI = stacked(self.own, self.shares)
        return a_RI, b_OR


@dataclass(frozen=True)
class New:
    """What a rule makes of a matrix."""

    factors: Pair
    beside: Tensor | None = None
    """Is added to the dense part [O, I] (None: nothing)."""
    metrics: Metrics = field(default_factory=dict)


class Factored(Aggregator):
    """Base: one matrix after the other, from its holders' factors."""

    replayable: ClassVar[bool] = False  # the last bits of an SVD differ between machines
    restarts: ClassVar[bool] = True
    """Gives factors that are no continuation of the clients', so that their moments are void."""

    at_rest: ClassVar[bool] = False
    """Averages B with A at rest (``sharing.kind = "ffa_lora"``)."""

    @abstractmethod
    def product(self, held: Held, ctx: ServerContext) -> New:
        """The new factors of a matrix, out of its holders'."""

    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        total: Params = {}
        numbers: dict[str, list[float]] = {}
        done: set[str] = set()
        for at in factors_of(ctx.params):
            held = [c for c in cs if at.a in c.delta or at.b in c.delta]
            if not held:
                continue
            done |= {at.a, at.b}
            old = ctx.params[at.a], ctx.params[at.b]
            own = [pair_of(c, at, ctx.params) for c in held]
            new = self.product(Held(at, old, own, shares_of(held)), ctx)
            for name, was, now in zip((at.a, at.b), old, new.factors, strict=True):
                total[name] = (was.double() - now.double()).to(was.dtype)
            if new.beside is not None:
                total[at.folded] = -new.beside.to(ctx.params[at.folded].dtype)
            for name, value in new.metrics.items():
                numbers.setdefault(name, []).append(value)
        rest = [
            Contribution(c.client, c.weight, {n: x for n, x in c.delta.items() if n not in done})
            for c in cs
        ]
        mean, _, _ = Mean()(rest, {}, ctx)
        metrics = {name: sum(values) / len(values) for name, values in numbers.items()}
        return {**total, **mean}, state, metrics

    def conflicts(self, config: Any) -> Iterator[str]:
        place = f"aggregator.kind = '{self.kind}'"
        if config.adapter.kind != "lora":
            yield f"{place} is about LoRA's factors; set adapter.kind = 'lora'"
        elif self.folds and not config.adapter.fold:
            yield f"{place} adds to the matrices themselves; set adapter.fold = true"
        if config.codec.sends_slopes:
            yield (
                f"{place} needs every client's factors, and codec.kind = '{config.codec.kind}' "
                "sends slopes, of which plain averages are exact; set codec.kind = 'dense'"
            )
        if self.at_rest and config.sharing.kind != "ffa_lora":
            yield f"{place} averages B with A at rest; set sharing.kind = 'ffa_lora'"
        if not config.sharing.whole_products:
            yield (
                f"{place} needs both factors, and with sharing.kind = '{config.sharing.kind}' one "
                "of them stays at the clients; set sharing.kind = 'everything'"
            )
        if not config.server.plain:
            yield (
                f"{place} gives new factors, not a direction; set server.kind = 'sgd', server.lr = "
                "1, no momentum and no schedule"
            )
        moving = [m.kind for m in config.modifiers if m.changes_aggregate]
        if moving:
            yield (
                f"{place} gives new factors, which modifier '{moving[0]}' would change one by one; "
                "drop it"
            )
        if self.restarts and config.client.keep_optimiser:
            yield (
                f"{place} makes new factors, for which old moments mean nothing; drop "
                "client.keep_optimiser"
            )


def pair_of(c: Contribution, at: Factors, params: Params) -> Pair:
    """The factors that a client ended with, float64; one that did not train it has the old one."""
    found = []
    for name in (at.a, at.b):
        old, delta = params[name].double(), c.delta.get(name)
        if delta is not None:
            rows, columns = delta.shape
            old = old[:rows, :columns] - delta.double()  # a client of lower rank has the first ones
        found.append(old)
    return found[0], found[1]


def shares_of(cs: Sequence[Contribution]) -> list[float]:
    """p_i = n_i / sum of n."""
    total = sum(c.weight for c in cs)
    return [c.weight / total for c in cs]


def missed(cs: Sequence[Contribution], total: Params, ctx: ServerContext) -> float | None:
    """How far the new product is from the mean of the clients' products, over that mean's change:
    |new - sum_i p_i B_i A_i| / |sum_i p_i B_i A_i - old|, over all matrices together.

    None: no matrix whose two factors both moved.
    """
    far = whole = 0.0
    for at in factors_of(total):
        held = [c for c in cs if at.a in c.delta and at.b in c.delta]
        if not held:
            continue
        own = [pair_of(c, at, ctx.params) for c in held]
        old = ctx.params[at.a].double(), ctx.params[at.b].double()
        new = old[0] - total[at.a].double(), old[1] - total[at.b].double()
        shares = shares_of(held)
        b, a = stacked([*own, old], [*shares, -1.0])
        whole += norm_of_product(b, a) ** 2
        b, a = stacked([*own, new], [*shares, -1.0])
        if at.folded in total:
            far += float((b @ a + total[at.folded].double()).square().sum())
        else:
            far += norm_of_product(b, a) ** 2
    return (far / whole) ** 0.5 if whole else None
