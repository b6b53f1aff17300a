"""SCAFFOLD: Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning"
(ICML 2020, arXiv 1910.06378), Algorithm 1, option II.

    client  g <- g + c - c_i                            in every local step
            c_i+ <- c_i - c + (x - y_i) / (K lr)        the mean of its gradients in this round
    server  c <- c + sum over the cohort of (c_i+ - c_i) / N

x - y_i is what a client sends anyway and K lr follows from its number of examples, so the server
finds c_i+ - c_i itself: nothing more travels up (published: twice as much), c travels down.

Departures: the server weighs clients by examples, as FedAvg does (published: evenly); where a codec
rounds, both sides take what arrives. A client whose answer is lost has moved its c_i all the same,
so c is their mean no longer, by that much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import PrivateAttr

from forefed.core import trees
from forefed.core.states import State, below
from forefed.core.types import ClientContext, Contribution, Params, ServerContext, Update
from forefed.modifiers.modifier import Modifier


@dataclass(frozen=True)
class Known:
    """What of the whole run decides how far a client may have walked."""

    client: Any
    """Its settings (``LocalTraining``)."""
    rounds: int
    members: int | None

    def steps(self, examples: float) -> int:
        """Local steps of a client with so many examples, or that has seen so many."""
        size = self.client.batch_size
        batches = 1 if size == "all" else -(-int(examples) // size)
        return min(self.client.epochs * batches, self.client.max_steps or 2**62)

    def walked(self, examples: float, round: int, in_head: bool) -> float:
        """K lr: of a gradient that was the same in all steps, how often it was walked."""
        optimiser = self.client.optimiser.at(round, self.rounds)
        own = optimiser.head_lr if in_head else None
        rate = float(optimiser.lr if own is None else own)
        return rate * self.steps(examples)


class Scaffold(Modifier):
    """Clients' steps are freed of what is theirs alone: of how their gradient differs."""

    kind: Literal["scaffold"] = "scaffold"

    source: ClassVar[str] = "Karimireddy et al., arXiv 1910.06378"
    accepts: ClassVar[tuple[str, ...]] = ("delta",)
    individual: ClassVar[bool] = True
    replayable: ClassVar[bool] = False

    _known: Known | None = PrivateAttr(default=None)

    def solved(self, config: Any, members: int | None) -> Modifier:
        knowing = self.model_copy()
        knowing._known = Known(config.client, config.rounds, members)
        return knowing

    @property
    def known(self) -> Known:
        assert self._known is not None, "a run fills it in (solved)"
        return self._known

    def on_step(
        self, grad: Params, at: Params, state: State, ctx: ClientContext, step: int
    ) -> tuple[Params, State]:
        common = ctx.order.remembered(self.kind, grad)
        found = dict(grad)
        for n in grad:
            if n in common:
                found[n] = found[n] + common[n]
            if n in state:
                found[n] = found[n] - state[n]
        return found, state

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        delta = update.grad or {}
        if not update.n_examples or not trees.all_finite(delta):
            return update, state
        common, new = ctx.order.remembered(self.kind, delta), dict(state)
        for n, moved in ctx.arriving(delta).items():
            walked = ctx.order.times * self.known.walked(
                update.n_examples, ctx.round, n in ctx.head
            )
            if walked:
                own = state[n] if n in state else torch.zeros_like(moved)
                new[n] = own - common.get(n, torch.zeros_like(moved)) + moved / walked
        return update, new

    def on_receive(
        self, c: Contribution, state: State, ctx: ServerContext
    ) -> tuple[Contribution, State]:
        members = self.known.members
        if not c.weight or not trees.all_finite(c.delta):
            return c, state
        assert members, "the server knows its population"
        head = {n for unit in ctx.units if unit.is_head for n in unit.params}
        common, sums, new = below(state, "c"), below(state, "sum"), dict(state)
        for n, moved in c.delta.items():
            walked = ctx.times * self.known.walked(c.weight, ctx.round, n in head)
            if walked:
                zero = torch.zeros_like(moved)
                change = (moved / walked - common.get(n, zero)) / members
                new[f"sum/{n}"] = sums.get(n, zero) + change
        return c, new

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        common, sums = below(state, "c"), below(state, "sum")
        moved = {n: common[n] + x if n in common else x for n, x in sums.items()}
        return total, {f"c/{n}": x for n, x in {**common, **moved}.items()}

    def broadcast(self, state: State) -> State:
        return below(state, "c")

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if not config.client.linear:
            yield (
                "modifiers: 'scaffold' takes a client's change for a sum of its gradients; set "
                "client.optimiser.kind = 'sgd', without momentum or weight decay"
            )
        if config.client.sampler.kind != "shuffled":
            yield (
                "modifiers: 'scaffold' counts a client's steps by its examples; set "
                "client.sampler.kind = 'shuffled'"
            )
        kinds = [m.kind for m in config.modifiers]
        for later in config.modifiers[kinds.index(self.kind) + 1 :] if self.kind in kinds else ():
            if type(later).on_send is not Modifier.on_send:
                yield (
                    f"modifiers: '{later.kind}' would change what 'scaffold' believes to be sent; "
                    "put 'scaffold' after it"
                )
