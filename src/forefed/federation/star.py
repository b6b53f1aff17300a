"""The star loop: one server, many clients. FedAvg, SPRY and their relatives are slots of it.

    plan      cohort, assignment -> one Order per client
    exchange  orders -> clients -> bytes -> Updates (replayed from slopes where they are slopes)
    finish    rule per parameter over its holders -> server optimiser -> new state (server.py)

State is an argument and a result; a round is a function of (run key, round number, state), so a
run resumes at any round.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from forefed.assign import Assign
from forefed.channel import Channel, Plain
from forefed.channel.channel import Group, Shapes, Sum, Work
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.states import keep
from forefed.core.types import Cohort, Json, Lost, Order, Reply, Transport, Unit, Update
from forefed.federation.exchange import Came, exchange
from forefed.federation.server import Finished, Server
from forefed.federation.state import PARTICIPATION, RunState
from forefed.federation.topology import Central, Topology
from forefed.modifiers import Private
from forefed.privacy import Release
from forefed.select import Selector, Uniform
from forefed.sharing import Everything, Sharing
from forefed.wire import Codec, Dense
from forefed.wire.records import encode_record

DIGITS = 16  # of the digest that clients who follow compare: 64 bits tell of any drift

__all__ = ["RoundReport", "RunState", "Star", "losses_by_reason"]


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
    pending: int = 0
    """Updates that wait for more before the server moves."""
    abandoned: int = 0
    """Answers that were dropped because they were fewer than the round needs."""
    record: bytes = b""
    """What the scalar log keeps of the round (nothing where tensors travel)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the aggregator counted."""
    contributions: tuple[Json, ...] = ()
    """{client, norm, cosine} of every answer that counted (federation/server.py)."""
    releases: tuple[Release, ...] = ()
    """What the round lets out of private data."""
    summed: tuple[int, ...] | None = None
    """Clients whose contributions came as sums, of which ``updates`` has one a group (None: every
    contribution came by itself)."""

    @property
    def loss(self) -> float:
        """The clients' mean training loss, by example (NaN: no finite one came)."""
        losses = [(u.metrics.get("loss", math.nan), u.n_examples) for u in self.updates]
        finite = [(loss, n) for loss, n in losses if math.isfinite(loss) and n > 0]
        weight = sum(n for _, n in finite)
        return sum(loss * n for loss, n in finite) / weight if weight else math.nan

    @property
    def heard(self) -> tuple[int, ...]:
        return tuple(u.client for u in self.updates) if self.summed is None else self.summed

    @property
    def failed(self) -> tuple[int, ...]:
        """The clients that answered with an error."""
        return tuple(lost.client for lost in self.lost if lost.reason == "error")


@dataclass(frozen=True)
class Star:
    """The slots of one federation."""

    key: Key
    units: Sequence[Unit]
    cohort: int
    assign: Assign
    transport: Transport
    server: Server
    deadline_s: float | None = None
    records: bool = False
    """Slopes travel, so a few numbers say what the server did in a round."""
    by_records: bool = False
    """Clients keep the parameters and receive what was done since their last visit."""
    cohort_min: int = 1
    """With fewer answers a round changes nothing."""
    over_select: float = 0.0
    """Clients asked beyond the cohort, as a share of it; the first answers count."""
    sharing: Sharing = Everything()  # noqa: RUF009 (frozen)
    topology: Topology = Central()  # noqa: RUF009 (frozen)
    select: Selector = Uniform()  # noqa: RUF009 (frozen)
    channel: Channel = Plain()  # noqa: RUF009 (frozen)
    shapes: Callable[[Order], Shapes] | None = None
    """Of an answer to an order, where sums of answers come."""
    codec: Codec = Dense()  # noqa: RUF009 (frozen)
    """Of what a topology without a server sends."""

    def drawn(self, state: RunState) -> Cohort:
        """Who takes part in the next round."""
        key = self.key.fold("round", state.round + 1)
        members = self.available(state)
        asked = math.ceil(self.cohort * (1 + self.over_select))
        ctx = replace(self.server.context(state, ()), key=key)
        cohort = self.select.select(members, asked, ctx)
        if self.over_select:  # in a rehearsal the first ones answer first
            cohort = [cohort[i] for i in key.fold("arrival").permutation(len(cohort))]
        expected = float(max(1, min(self.cohort, len(members))))
        chance = self.select.probability(len(members), self.cohort)
        return Cohort(tuple(cohort), expected, chance)

    def plan(self, state: RunState, drawn: Cohort | None = None) -> dict[int, Order]:
        """The orders of the next round, by client."""
        number = state.round + 1
        key = self.key.fold("round", number)
        cohort = (drawn or self.drawn(state)).clients
        names = self.assign.names(self.units, len(cohort), key.fold("assign")) if cohort else []
        split = self.sharing.split(self.units, number)
        own = frozenset() if self.sharing.from_common else split.private
        params = {n: x for n, x in state.params.items() if n not in own}
        carried = state.carried() if self.by_records else {}
        forms = {f: self.sharing.sent(params, f) for f in {self.sharing.form(c) for c in cohort}}
        told = self.server.broadcast(state)
        digest = trees.digest(state.params)[:DIGITS] if self.by_records else ""
        return {
            client: Order(
                self.key.value,
                number,
                client,
                tuple(n for n in assigned if n in split.shared),
                forms[self.sharing.form(client)],
                told,
                carried,
                self.server.missed(state, client) if self.by_records else None,
                digest,
            )
            for client, assigned in zip(cohort, names, strict=True)
        }

    def round(
        self, state: RunState, on_outcome: Callable[[Reply | Lost], None] | None = None
    ) -> tuple[RunState, RoundReport]:
        """One round; ``on_outcome`` is told of every answer as it comes (for progress)."""
        return self.topology.round(self, state, on_outcome)

    def central_round(
        self, state: RunState, on_outcome: Callable[[Reply | Lost], None] | None = None
    ) -> tuple[RunState, RoundReport]:
        """A round of one server and its clients: FedAvg, with every part a slot."""
        clock = [time.perf_counter()]
        drawn = self.drawn(state)
        orders = self.plan(state, drawn)
        clock.append(time.perf_counter())
        came = self.hear(orders, on_outcome)
        clock.append(time.perf_counter())
        updates, heard, abandoned = came.found, came.heard, came.abandoned
        if len(heard) < self.cohort_min:
            updates, heard, abandoned = [], (), abandoned + len(heard)
        done = self.server.finish(state, orders, updates, drawn)
        new_state, record = done.state, self.encoded(done, state)
        new_state = self.counted(new_state, orders)
        clock.append(time.perf_counter())
        plan_s, clients_s, apply_s = (b - a for a, b in pairwise(clock))
        receiving = came.receiving_s
        report = RoundReport(
            new_state.round,
            tuple(orders),
            tuple(sorted(updates, key=lambda u: u.client)),  # sums do not tell who came first
            tuple(came.lost),
            came.bytes_up,
            came.bytes_down,
            {"plan": plan_s, "clients": clients_s - receiving, "aggregate": apply_s + receiving},
            len(new_state.pending),
            abandoned,
            record,
            {**done.metrics, **(_of_sums(updates) if came.summed else {})},
            () if came.summed else done.contributions,
            done.releases,
            heard if came.summed else None,
        )
        return self.remember(state, new_state, record, report.heard, report.failed), report

    def hear(
        self, orders: Mapping[int, Order], on_outcome: Callable[[Reply | Lost], None] | None
    ) -> Came[Update]:
        """The answers to a round's orders, as the channel shows them."""
        number = next((order.round for order in orders.values()), 0)
        slopes = self.server.averages_slopes

        def send(beside: Mapping[int, bytes], enough: Callable[[], bool]) -> Iterator[Reply | Lost]:
            told = [
                replace(orders[c], channel=more) if more else orders[c]
                for c, more in beside.items()
            ]
            return self.transport.exchange(told, self.deadline_s, enough)

        def read(client: int, payload: bytes) -> Update:
            return self.server.receive(orders[client], payload)

        work = Work(
            groups=self.groups(orders),
            payload="projections" if slopes else "delta",
            read=read,
            of_sum=lambda total: update_of(total, slopes),
            own=self.server.secret and self.server.secret.fold("sum", number),
        )
        wanted = self.cohort if self.over_select else None
        hook = on_outcome or (lambda outcome: None)
        args = self.channel, work, self.transport, send, number, self.deadline_s, wanted, hook
        return exchange(*args)

    def groups(self, orders: Mapping[int, Order]) -> list[Group]:
        """Clients by what their answers hold, where these are added up; else all at once."""
        if not self.channel.sums:
            return [Group(tuple(orders), {})]
        assert self.shapes is not None, "of what is summed"
        alike: dict[tuple[str, ...], list[int]] = {}
        for client, order in orders.items():
            alike.setdefault(order.assigned, []).append(client)
        return [Group(tuple(some), self.shapes(orders[some[0]])) for some in alike.values()]

    @property
    def cap(self) -> int | None:
        """Rounds that one client takes part in at most."""
        caps = [m.participation for m in self.server.modifiers if isinstance(m, Private)]
        return min((c for c in caps if c is not None), default=None)

    def available(self, state: RunState) -> Sequence[int]:
        """The members that may still be drawn."""
        members = self.transport.members()
        if self.cap is None:
            return members
        done = state.of(PARTICIPATION)
        spent = done["client"][done["rounds"] >= self.cap].tolist() if done else []
        return [m for m in members if m not in {*spent}]

    def counted(self, state: RunState, asked: Iterable[int]) -> RunState:
        """``state`` with the rounds that each client was asked in, where they are limited."""
        if self.cap is None:
            return state
        done = state.of(PARTICIPATION)
        rounds: Counter[int] = Counter([*asked])
        if done:
            rounds.update(dict(zip(done["client"].tolist(), done["rounds"].tolist(), strict=True)))
        clients = sorted(rounds)
        columns = {"client": clients, "rounds": [rounds[c] for c in clients]}
        kept = {name: torch.tensor(x, dtype=torch.int64) for name, x in columns.items()}
        return replace(state, states=keep(state.states, PARTICIPATION, kept if clients else {}))

    def encoded(self, done: Finished, state: RunState) -> bytes:
        """The round's record, where there is a log or clients follow by records."""
        recorded = self.records or self.by_records
        return encode_record(done.record, state.params) if recorded else b""

    def remember(
        self,
        state: RunState,
        new_state: RunState,
        record: bytes,
        heard: Iterable[int],
        failed: Iterable[int],
    ) -> RunState:
        """``new_state`` with what clients need that will have missed this round. Those that failed
        may have lost what they kept, or hold other bits, and are sent the parameters next."""
        if not self.by_records:
            return new_state
        whole = sum(x.nbytes for x in new_state.flat().values())
        log = state.log.after(new_state.round, record, heard, whole).without(failed)
        return replace(new_state, log=log)


def update_of(total: Sum, slopes: bool) -> Update:
    """A sum as one update, under the smallest number that was asked to be in it."""
    about = dict(total.about)
    weight, members = round(about.pop("examples")), round(about["clients"])
    grad, sent = (None, dict(total.tensors)) if slopes else (dict(total.tensors), None)
    return Update(min(total.asked), weight, grad, sent, about, clients=members)


def _of_sums(updates: Iterable[Update]) -> dict[str, float]:
    """Of clients in sums: how many were scaled down to the clip, or had more examples than
    count."""
    return {n: sum(u.metrics[n] for u in updates) for n in ("clipped", "capped")}


def losses_by_reason(report: RoundReport) -> dict[str, int]:
    return dict(Counter(lost.reason for lost in report.lost))
