"""A round of one server and its clients. FedAvg is below, line by line; SPRY and the others are
what stands in its slots.

    McMahan et al. (arXiv 1602.05629), Algorithm 1           here

    server: for each round t
      S_t <- a random set of clients                         Star.drawn           slot select
      send w_t to every k in S_t                             Star.plan            assign, sharing
    client k: for some epochs, for each batch b              local/training.py    client.sampler
      w <- w - lr * gradient of the loss on b                                     engine, client
      send w to the server                                   Star.hear            codec, channel
    server:
      w_t+1 <- sum over k in S_t of n_k / n * w^k_t+1        Server.finish        aggregator, server

What is sent is the change, old - new: its mean, subtracted with a rate of 1, is the mean of the
models. ``modifiers`` may act on every step, on what is sent, on what is received and on the mean.

State is an argument and a result; a round is a function of (run key, round number, state), so a
run resumes at any round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from forefed.assign import Assign
from forefed.channel import Channel, Plain
from forefed.channel.channel import Group, Shapes, Sum, Work
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import (
    Cohort,
    Lost,
    Order,
    Params,
    Reply,
    Standing,
    Transport,
    Unit,
    Update,
)
from forefed.federation.exchange import Came, exchange
from forefed.federation.folds import FOLDS, Folds
from forefed.federation.participation import available, cap_of, counted
from forefed.federation.report import Laps, RoundReport, losses_by_reason
from forefed.federation.server import Finished, Server
from forefed.federation.state import RunState
from forefed.federation.streaming import Growing
from forefed.federation.topology import Central, Topology
from forefed.modifiers.modifier import beside_of
from forefed.select import Selector, Uniform
from forefed.sharing import Everything, Sharing
from forefed.wire import Codec, Dense
from forefed.wire.records import encode_record

Carry = Callable[[Iterable[Order], float | None, Callable[[], bool]], Iterator[Reply | Lost]]
DIGITS = 16  # of the digest that clients who follow compare: 64 bits tell of any drift

__all__ = ["RoundReport", "RunState", "Star", "losses_by_reason"]


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
    oversampling: float = 0.0
    """Clients asked beyond the cohort, as a share of it; the first answers count."""
    sharing: Sharing = Everything()  # noqa: RUF009 (frozen)
    topology: Topology = Central()  # noqa: RUF009 (frozen)
    select: Selector = Uniform()  # noqa: RUF009 (frozen)
    channel: Channel = Plain()  # noqa: RUF009 (frozen)
    shapes: Callable[[Order], Shapes] | None = None
    """Of an answer to an order, where sums of answers come."""
    codec: Codec = Dense()  # noqa: RUF009 (frozen)
    """Of what a topology without a server sends."""

    def round(
        self, state: RunState, on_outcome: Callable[[Reply | Lost], None] | None = None
    ) -> tuple[RunState, RoundReport]:
        """One round; ``on_outcome`` is told of every answer as it comes (for progress)."""
        return self.topology.round(self, state, on_outcome)

    def central_round(
        self, state: RunState, on_outcome: Callable[[Reply | Lost], None] | None = None
    ) -> tuple[RunState, RoundReport]:
        """FedAvg's round, with every part a slot."""
        laps = Laps()
        drawn = self.drawn(state)
        orders = self.plan(state, drawn)
        laps.end("plan")
        growing = None if self.channel.sums else Growing.of(self.server, state, orders)
        came = self.hear(orders, on_outcome, growing)
        laps.end("clients")
        enough = len(came.heard) >= self.cohort_min
        updates, heard = (came.found, came.heard) if enough else ([], ())
        if growing is not None and enough:
            done = growing.finish(state, updates, drawn)
        else:
            done = self.server.finish(state, orders, updates, drawn)
        after = counted(done.state, orders, self.cap)
        record = self.encoded(done, state)
        laps.end("aggregate")
        laps.move(came.receiving_s, "clients", "aggregate")
        by_client = sorted(updates, key=lambda u: u.client)  # sums do not tell who came first
        report = RoundReport(
            round=after.round,
            cohort=tuple(orders),
            updates=tuple(by_client),
            lost=tuple(came.lost),
            bytes_up=came.bytes_up,
            bytes_down=came.bytes_down,
            seconds=laps.seconds,
            pending=len(after.pending),
            abandoned=came.abandoned + (0 if enough else len(came.heard)),
            record=record,
            metrics={**done.metrics, **(_of_sums(updates) if came.summed else {})},
            contributions=() if came.summed else done.contributions,
            releases=done.releases,
            summed=heard if came.summed else None,
        )
        return self.remember(state, after, record, report.heard, report.failed), report

    def drawn(self, state: RunState) -> Cohort:
        """Who takes part in the next round."""
        key = self.key.fold("round", state.round + 1)
        members = available(self.transport.members(), state, self.cap)
        asked = math.ceil(self.cohort * (1 + self.oversampling))
        ctx = replace(self.server.context(state, ()), key=key)
        cohort = self.select.select(members, asked, ctx)
        if self.oversampling:  # in a rehearsal the first ones answer first
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
        told, folds = self.server.broadcast(state), Folds.kept(state.of(FOLDS))
        versions = {c: (self.sharing.form(c), folds.group_of(c) if folds else -1) for c in cohort}
        sent: dict[tuple[int, int], tuple[Params, Params]] = {}
        for form, k in {*versions.values()}:  # each is one broadcast, of one object
            version = self.sharing.sent(params, form), told
            sent[form, k] = folds.given(k, *version) if folds else version
        digest = trees.digest(state.params)[:DIGITS] if self.by_records else ""
        beside = beside_of(self.server.modifiers, state.params, self.server.head)
        return {
            client: Order(
                self.key.value,
                number,
                client,
                tuple(n for n in assigned if n in split.shared),
                sent[versions[client]][0],
                sent[versions[client]][1],
                carried,
                self.server.missed(state, client) if self.by_records else None,
                digest,
                beside=beside,
            )
            for client, assigned in zip(cohort, names, strict=True)
        }

    def hear(
        self,
        orders: Mapping[int, Order],
        on_outcome: Callable[[Reply | Lost], None] | None,
        growing: Growing | None = None,
        buffer: int | None = None,
    ) -> Came[Update]:
        """The answers to a round's orders, as the channel shows them.

        Args:
            growing: into whose sums their changes go (None: they are held).
            buffer: answers after which the other orders stay on their way (None: all are heard, or
                lost); of a transport that is ``Standing``.
        """
        number = max((order.round for order in orders.values()), default=0)
        carry: Carry = self.transport.exchange
        if buffer is not None:
            assert isinstance(self.transport, Standing)
            carry = self.transport.gather
        slopes = self.server.averages_slopes

        def send(beside: Mapping[int, bytes], enough: Callable[[], bool]) -> Iterator[Reply | Lost]:
            told = [
                replace(orders[c], channel=more) if more else orders[c]
                for c, more in beside.items()
            ]
            return carry(told, self.deadline_s, enough)

        def read(client: int, payload: bytes) -> Update:
            if growing is not None:
                return growing.read(client, payload)
            return self.server.receive(orders[client], payload)

        def heard(outcome: Reply | Lost) -> None:
            if growing is not None:
                growing.outcome(outcome)
            if on_outcome is not None:
                on_outcome(outcome)

        work = Work(
            groups=self.groups(orders),
            payload="projections" if slopes else "delta",
            read=read,
            of_sum=lambda total: update_of(total, slopes),
            own=self.server.secret and self.server.secret.fold("sum", number),
        )
        return exchange(
            self.channel,
            work,
            self.transport,
            send,
            number,
            self.deadline_s,
            wanted=buffer or (self.cohort if self.oversampling else None),
            on_outcome=heard,
        )

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
        return cap_of(self.server.modifiers)

    def encoded(self, done: Finished, state: RunState) -> bytes:
        """The round's record, where there is a log or clients follow by records."""
        recorded = self.records or self.by_records
        return encode_record(done.record, state.params) if recorded else b""

    def remember(
        self,
        before: RunState,
        after: RunState,
        record: bytes,
        heard: Iterable[int],
        failed: Iterable[int],
    ) -> RunState:
        """``after`` with this round in the log, for clients that will have missed it. Those that
        failed may have lost what they kept, or hold other bits, and are sent the parameters next.
        """
        if not self.by_records:
            return after
        whole = sum(x.nbytes for x in after.flat().values())
        log = before.log.after(after.round, record, heard, whole).without(failed)
        return replace(after, log=log)


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
