"""The star loop: one server, many clients. FedAvg, SPRY and their relatives are slots of it.

    plan      cohort, assignment -> one Order per client
    exchange  orders -> clients -> bytes -> Updates (replayed from slopes where they are slopes)
    apply     rule per parameter over its holders -> server optimiser -> new parameters

State is an argument and a result; a round is a function of (run key, round number, state), so a
run resumes at any round.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from forefed.aggregate import Rule, aggregate
from forefed.assign import Assign
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import (
    Lost,
    Order,
    Params,
    Reply,
    ServerState,
    Transport,
    Unit,
    Update,
)
from forefed.optimisers import Optimiser
from forefed.transforms import Transform


@dataclass(frozen=True)
class RunState:
    """Everything the server carries from round to round. ``round`` counts finished rounds."""

    round: int
    params: Params
    server: ServerState = field(default_factory=dict)
    rule: ServerState = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReport:
    """What one round did; the record writes it as one line."""

    round: int
    cohort: tuple[int, ...]
    updates: tuple[Update, ...]
    lost: tuple[Lost, ...]
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Star:
    """The slots of one federation. ``receive`` turns a reply into an update with its ``grad``."""

    key: Key
    units: Sequence[Unit]
    head: frozenset[str]
    cohort: int
    assign: Assign
    transport: Transport
    receive: Callable[[Reply, Order], Update]
    rule: Rule
    server: Optimiser
    transforms: Sequence[Transform] = ()
    deadline_s: float | None = None
    server_rate: Callable[[int], float] = lambda _: 1.0
    """Factor on the server's learning rates in round r (r counts from 1)."""

    def plan(self, state: RunState) -> dict[int, Order]:
        """The orders of the next round, by client."""
        number = state.round + 1
        key = self.key.fold("round", number)
        members = self.transport.members()
        chosen = key.fold("cohort").choice(len(members), min(self.cohort, len(members)))
        cohort = [members[i] for i in chosen]
        names = self.assign.names(self.units, len(cohort), key.fold("assign"))
        return {
            client: Order(self.key.value, number, client, assigned, state.params)
            for client, assigned in zip(cohort, names, strict=True)
        }

    def round(
        self, state: RunState, on_outcome: Callable[[Reply | Lost], None] | None = None
    ) -> tuple[RunState, RoundReport]:
        """One round; ``on_outcome`` is told of every answer as it comes (for progress)."""
        clock = [time.perf_counter()]
        orders = self.plan(state)
        clock.append(time.perf_counter())
        updates: list[Update] = []
        lost: list[Lost] = []
        bytes_up = bytes_down = 0
        receiving = 0.0
        for outcome in self.transport.exchange(orders.values(), self.deadline_s):
            bytes_down += outcome.bytes_down
            if isinstance(outcome, Reply):
                bytes_up += outcome.bytes_up
                started = time.perf_counter()
                try:
                    updates.append(self.receive(outcome, orders[outcome.client]))
                except ProtocolError as error:
                    lost.append(Lost(outcome.round, outcome.client, "transport", str(error)))
                receiving += time.perf_counter() - started
            else:
                lost.append(outcome)
            if on_outcome:
                on_outcome(outcome)
        clock.append(time.perf_counter())
        new_state = self.apply(state, updates)
        clock.append(time.perf_counter())
        plan_s, clients_s, apply_s = (b - a for a, b in pairwise(clock))
        report = RoundReport(
            new_state.round,
            tuple(orders),
            tuple(updates),
            tuple(lost),
            bytes_up,
            bytes_down,
            {"plan": plan_s, "clients": clients_s - receiving, "aggregate": apply_s + receiving},
        )
        return new_state, report

    def apply(self, state: RunState, updates: Sequence[Update]) -> RunState:
        """The server's step: nothing moves that nobody trained."""
        rule_state, grad = aggregate(self.rule, state.rule, updates)
        for transform in reversed(self.transforms):
            grad = transform.server(grad)
        number = state.round + 1
        server = self.server.scaled(self.server_rate(number))
        server_state, params = server.step(state.server, state.params, grad, self.head)
        return RunState(number, params, server_state, rule_state)


def losses_by_reason(report: RoundReport) -> dict[str, int]:
    return dict(Counter(lost.reason for lost in report.lost))
