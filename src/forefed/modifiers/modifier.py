"""What happens to a gradient, an update and an aggregate on their way: pairs of a client half and a
server half.

    client  on_batch      what a local step is computed on
            on_step       every local step's gradient, before the optimiser
            on_send       the update, before it is encoded
    server  on_receive    one contribution, before the aggregation
            on_aggregate  the aggregate, before the server's optimiser
            broadcast     what clients are told in the next round

Client halves are applied in the order of the list, server halves in reverse. Every half has its own
state, kept between rounds: a client's stays at the client, the server's is in its checkpoint.

Source: pfl-research's ``Postprocessor`` for the outer two, Optax for the explicit state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from forefed.core.settings import Choice
from forefed.core.states import State
from forefed.core.types import Batch, ClientContext, Contribution, Params, ServerContext, Update
from forefed.privacy import Release


class Modifier(Choice):
    """Base: every half does nothing unless it is overridden."""

    accepts: ClassVar[tuple[str, ...]] = ("delta", "projections")
    """What may travel under it (``Codec.payload``)."""
    individual: ClassVar[bool] = False
    """Reads single contributions at the server (not under a sum that hides them)."""
    replayable: ClassVar[bool] = True
    """A function of what travels: neither a client's own state nor a secret decides what it does,
    so that the server can do a client's steps again, and a client the server's."""
    reads_last: ClassVar[bool] = False
    """Reads ``ctx.last_gradient``, which is made for it."""
    per_example: ClassVar[bool] = False
    """Examples are computed one by one, each through ``on_example``, their sum through
    ``on_sum``."""
    private: ClassVar[bool] = False
    """Single contributions, and what clients say of themselves, are nobody's to see: they stand in
    no record, sums have a constant divisor (``ctx.divisor``), and it says what it ``releases``."""
    restores: ClassVar[bool] = False
    """Keeps at the client what the codec lost, and sends it later."""
    on_wire: ClassVar[bool] = False
    """Its server half works on what travels: on slopes, where those are averaged before anything
    is rebuilt. (A client that follows by records does not do it again.)"""

    def beside(self, params: Params, head: frozenset[str]) -> Params:
        """What its client half sends beside the change, and the server's reads
        (``Update.beside``, ``Contribution.beside``): tensors like these, float32, by its own names.

        Args:
            params: all parameters.
            head: the names of the head's.
        """
        return {}

    def on_batch(
        self, batch: Batch, labels: NDArray[np.int64], classes: int, ctx: ClientContext
    ) -> Batch:
        """A local step's batch, before anything is computed of it.

        Args:
            labels: of all training rows of the client.
            classes: how many there are.
        """
        return batch

    def on_step(
        self, grad: Params, at: Params, state: State, ctx: ClientContext, step: int
    ) -> tuple[Params, State]:
        """One local step's gradient.

        Args:
            grad: of the parameters that are trained. Not changed.
            at: their values before the step.
            ctx: ``ctx.start`` holds their values before the round's first step.
            step: number within the round, from 0.
        """
        return grad, state

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        """What is about to be encoded."""
        return update, state

    def on_receive(
        self, c: Contribution, state: State, ctx: ServerContext
    ) -> tuple[Contribution, State]:
        """One client's contribution, in the order of the clients."""
        return c, state

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        """The aggregate (old - new) that goes to the server's optimiser."""
        return total, state

    def broadcast(self, state: State) -> State:
        """What of the server's state clients are told, by parameter (``Order.remembered``)."""
        return {}

    def on_example(self, message: Params, ctx: ClientContext) -> Params:
        """What one example may add to a step (``per_example``).

        Args:
            message: what decides the step: "slopes/<group>" [K] and "exact/<parameter>".
        """
        return message

    def on_sum(self, total: Params, expected: float, ctx: ClientContext, step: int) -> Params:
        """What decides the step, from the sum over its examples, of which so many are expected."""
        return {n: x / expected for n, x in total.items()}

    def releases(self, ctx: ServerContext) -> Sequence[Release]:
        """What this round lets out of private data, for the accountant."""
        return ()

    def planned(self, config: Any, members: int) -> Sequence[Release]:
        """What a whole run lets out at most, of which one unit of privacy is part."""
        return ()

    def solved(self, config: Any, members: int | None) -> Modifier:
        """The same with every number filled in that follows from the whole run. ``members``: the
        population (None: not known here, at a client)."""
        return self

    @property
    def serves(self) -> bool:
        """Has it a server's half?"""
        halves = ("on_receive", "on_aggregate", "broadcast")
        return any(getattr(type(self), name) is not getattr(Modifier, name) for name in halves)

    @property
    def bends_steps(self) -> bool:
        """Does it change local steps, so that they are no multiple of the gradient any more?"""
        return type(self).on_step is not Modifier.on_step

    @property
    def changes_aggregate(self) -> bool:
        """Has it a server half that works on the aggregate?"""
        return type(self).on_aggregate is not Modifier.on_aggregate

    @property
    def reads_batches(self) -> bool:
        """Does it have a say in what a step is computed on?"""
        return type(self).on_batch is not Modifier.on_batch

    @property
    def sends_beside(self) -> bool:
        """Does it send more than the change?"""
        return type(self).beside is not Modifier.beside

    @property
    def owner(self) -> str:
        """Under which name its states are kept."""
        return f"modifier.{self.kind}"

    def conflicts(self, config: Any) -> Iterator[str]:
        slopes = config.codec.sends_slopes
        reason, remedy = "", "use codec.kind = 'dense'"
        if config.codec.payload not in self.accepts:
            reason = f"works on {' or '.join(self.accepts)}, and codec.kind = "
            reason += f"'{config.codec.kind}' sends {config.codec.payload}"
            remedy = remedy if "delta" in self.accepts else "use codec.kind = 'scalars'"
        elif slopes and not self.replayable:
            reason = "does what only its owner knows, so no steps can be replayed from slopes"
        elif slopes and self.individual and config.directions.shared:
            reason = "looks at single contributions, and directions.shared averages slopes before"
            remedy = "set directions.shared = false"
        elif self.sends_beside and not config.codec.carries:
            reason = f"sends more than the change, which codec.kind = '{config.codec.kind}' does "
            reason += "not carry"
        if reason:
            yield f"modifiers: '{self.kind}' {reason}; {remedy}"
        hidden = [m.kind for m in config.modifiers if m.private and not m.per_example]
        if self.sends_beside and (hidden or config.attack.kind != "none"):
            yield (
                f"modifiers: what '{self.kind}' sends beside the change is neither made noisy nor "
                "forged; drop it, or " + (f"'{hidden[0]}'" if hidden else "the attack")
            )
        if self.sends_beside and config.topology.kind != "star":
            yield f"modifiers: '{self.kind}' wants a server; set topology.kind = 'star'"


def beside_of(modifiers: Iterable[Modifier], params: Params, head: frozenset[str]) -> Params:
    """The form of all that is sent beside a change, by "kind/name" (``Order.beside``)."""
    return {f"{m.kind}/{n}": x for m in modifiers for n, x in m.beside(params, head).items()}
