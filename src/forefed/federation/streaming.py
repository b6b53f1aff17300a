"""A round whose answers are added up as they come, so that memory does not grow with the cohort.

For rules that are weighted sums (``Aggregator.runs``), and cohorts whose answers would take more
than ``HELD`` bytes together; smaller ones are held, and tell more: the angle of every contribution
to the aggregate needs both. The sum is the same to the bit whatever the order of arrival
(``aggregate/streaming_mean.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from forefed.aggregate.streaming_mean import RunningSum
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.states import keep
from forefed.core.types import Cohort, Json, Lost, Order, Params, Reply, Update
from forefed.federation.server import Finished, Server
from forefed.federation.state import RunState
from forefed.modifiers import Modifier
from forefed.trigger import EveryRound
from forefed.wire.flat import Form, form_of
from forefed.wire.records import RoundRecord

HELD = 64_000_000
"""Bytes of a round's changes that are held at one time."""


class Growing:
    """The sums of a round, one for each form of answer."""

    def __init__(self, server: Server, orders: Mapping[int, Order], forms: Mapping[int, Form]):
        self.server, self.orders, self.forms = server, orders, forms
        clients: dict[tuple[str, ...], list[int]] = {}
        for client, order in orders.items():
            clients.setdefault(order.assigned, []).append(client)
        self.sums = {
            assigned: RunningSum(some, forms[some[0]].size) for assigned, some in clients.items()
        }
        self.norms: dict[int, float] = {}

    @staticmethod
    def of(server: Server, state: RunState, orders: Mapping[int, Order]) -> Growing | None:
        """None where the answers are to be held: few, or needed one by one."""
        known: dict[tuple[str, ...], Form | None] = {}
        forms: dict[int, Form] = {}
        for client, order in orders.items():
            if order.assigned not in known:
                known[order.assigned] = form_of(trees.pick(order.params, order.assigned))
            form = known[order.assigned]
            if form is None:
                return None
            forms[client] = form
        if 4 * sum(form.size for form in forms.values()) <= HELD or state.pending:
            return None
        if not (server.aggregator.runs and isinstance(server.trigger, EveryRound)):
            return None
        if any(m.private or m.reads_last or _receives(m) for m in server.modifiers):
            return None
        alike = len(known) == 1 and _same_engine(server, orders)
        for client in orders:
            trainer = server.trainer(client)
            if trainer.codec.sends_slopes or (trainer.engine.estimates and not alike):
                return None
        return Growing(server, orders, forms)

    def read(self, client: int, payload: bytes) -> Update:
        """An answer, whose change has gone into the sum.

        Raises:
            ProtocolError: as ``Server.receive``.
        """
        order, codec = self.orders[client], self.server.trainer(client).codec
        total = self.sums[order.assigned]
        try:
            update, x_D = codec.vector(payload, order, self.forms[client])
        except ProtocolError:
            total.leave_out(client)
            raise
        if update.n_examples == 0:
            total.leave_out(client)
            return update
        norm = total.add(client, float(update.n_examples), x_D)
        if norm is None:
            raise ProtocolError(f"client {client}: the update is not finite")
        self.norms[client] = norm
        return update

    def outcome(self, outcome: Reply | Lost) -> None:
        """Nobody waits for a client that is lost."""
        if isinstance(outcome, Lost):
            self.sums[self.orders[outcome.client].assigned].leave_out(outcome.client)

    def total(self) -> Params:
        """The weighted mean, by parameter over those that trained it."""
        sums: Params = {}
        weights: dict[str, float] = {}
        for assigned, running in self.sums.items():
            form = self.forms[next(c for c, o in self.orders.items() if o.assigned == assigned)]
            parts = form.tensors(running.finished().numpy())
            if running.weight == 0:
                continue
            for name in assigned:
                x = parts[name]
                sums[name] = sums[name] + x if name in sums else x
                weights[name] = weights.get(name, 0.0) + running.weight
        return {n: (x / weights[n]).float() for n, x in sums.items()}

    def finish(self, state: RunState, heard: Sequence[Update], cohort: Cohort | None) -> Finished:
        """``Server.finish`` of answers that were added up."""
        server = self.server
        clients = tuple(sorted(u.client for u in heard if u.n_examples > 0))
        ctx = server.context(state, clients, cohort)
        total = self.total()
        modifiers = tuple(reversed(server.modifiers))
        total, states, releases = server.let_out(total, dict(state.states), ctx, modifiers)
        moments, params = server.move(state, total)
        states = keep(states, "optimizer", moments)
        after = replace(state, round=ctx.round, params=params, states=states)
        told: list[Json] = [
            {"client": c, "norm": float(f"{self.norms[c]:.6g}"), "cosine": None} for c in clients
        ]
        return Finished(after, RoundRecord(ctx.round, ()), tuple(told), {}, releases)


def _same_engine(server: Server, clients: Iterable[int]) -> bool:
    """Then all estimates of a parameter are equally noisy, and weighed by their examples alone."""
    engines = [server.trainer(client).engine for client in clients]
    return all(e is engines[0] or e == engines[0] for e in engines)


def _receives(modifier: Modifier) -> bool:
    """Has it a say in single contributions?"""
    return type(modifier).on_receive is not Modifier.on_receive
