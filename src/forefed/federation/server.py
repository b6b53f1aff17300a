"""The server's half of a round, from the bytes of an answer to the new state.

    receive   bytes -> an update; one of slopes is rebuilt into the change that it stands for
    finish    updates -> contributions -> modifiers -> aggregator -> modifiers -> optimiser

Where all clients walk along the same directions, slopes are averaged first and rebuilt once.

A client that keeps up by records calls ``Server.replay`` on what it decoded: the same function as
the server's, so both hold the same bits (DeComFL, arXiv 2405.15861).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from forefed.aggregate import Aggregator, Mean
from forefed.aggregate.aggregator import Metrics
from forefed.aggregate.factored import missed
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key, Secret
from forefed.core.states import State, keep
from forefed.core.types import (
    RATE,
    Cohort,
    Contribution,
    Json,
    Order,
    Params,
    ServerContext,
    ServerState,
    Unit,
    Update,
)
from forefed.federation.folds import FOLDS, Folds
from forefed.federation.lengths import described
from forefed.federation.slopes import average_slopes, fitted
from forefed.federation.state import RunState
from forefed.local import Trainer, check_slopes, replay, variance_of
from forefed.models.bag_of_words import WORDS
from forefed.modifiers import Modifier
from forefed.optimisers import Optimiser
from forefed.privacy import Release
from forefed.trigger import EveryRound, Trigger
from forefed.wire.records import Entry, RoundRecord


@dataclass(frozen=True)
class Layout:
    """The form of an aggregate, whoever is heard: the parameters that are trained, in the order of
    use, and zeros in the place of what travels of them."""

    names: tuple[str, ...] = ()
    blank: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """What the server made of a round's answers."""

    state: RunState
    record: RoundRecord
    contributions: tuple[Json, ...] = ()
    """Of every answer that counted {client, norm, cosine}: its length, and its angle to the
    aggregate over what it trained (None: nothing moved, or one of them is zero). With shared
    directions both are those of the slopes."""
    metrics: Metrics = field(default_factory=dict)
    """What the aggregator counted."""
    releases: tuple[Release, ...] = ()
    """What the round lets out of private data."""


@dataclass(frozen=True)
class Server:
    """The server's slots.

    ``averages_slopes``: clients share their directions and send slopes, so the aggregator runs over
    slopes, and what it makes of them is rebuilt once. Exact for plain gradient steps at the
    clients, which are linear in the slopes.
    """

    key: Key
    head: frozenset[str]
    aggregator: Aggregator
    optimiser: Optimiser
    modifiers: Sequence[Modifier] = ()
    rounds: int = 0
    """Of the whole run, over which the optimiser's schedule is laid."""
    trigger: Trigger = EveryRound()  # noqa: RUF009 (frozen)
    trainer_of: Callable[[int], Trainer] | None = None
    """A client's local training, whose steps are repeated from its slopes."""
    averages_slopes: bool = False
    secret: Secret | None = None
    """What the server alone draws from (a client that follows by records has none)."""
    units: Sequence[Unit] = ()
    layout: Callable[[RunState], Layout] = lambda _: Layout()
    """Of what is aggregated in the round after a state, for private modifiers."""

    @property
    def private(self) -> tuple[Modifier, ...]:
        """The modifiers under which nobody's contribution may be seen."""
        return tuple(m for m in self.modifiers if m.private)

    def receive(self, order: Order, payload: bytes) -> Update:
        """An answer to an order, as it came.

        Raises:
            ProtocolError: damaged, or not an answer to this order.
        """
        trainer = self.trainer(order.client)
        update = trainer.codec.decode(payload, order)
        counted = {} if self.private else trainer.codec.counts(update)
        update = replace(update, metrics={**update.metrics, **counted}) if counted else update
        if self.averages_slopes:
            check_slopes(trainer, order, update)
            return update
        return self.rebuild(order, update)

    def rebuild(self, order: Order, update: Update) -> Update:
        """An update with the change that its slopes stand for, and how noisy that is."""
        trainer = self.trainer(order.client)
        if update.slopes is None and not trainer.engine.estimates:
            return update  # the change itself, and exact
        return replace(replay(trainer, order, update), variance=variance_of(trainer, order))

    def trainer(self, client: int) -> Trainer:
        """What a client computes with."""
        assert self.trainer_of is not None, "a server that receives answers knows how they are made"
        return self.trainer_of(client)

    def finish(
        self,
        state: RunState,
        orders: Mapping[int, Order],
        updates: Iterable[Update],
        cohort: Cohort | None = None,
    ) -> Finished:
        """The state after a round, and the record from which ``replay`` makes the same.

        Args:
            cohort: who was drawn, and how (None: nothing is claimed of it).
        """
        heard = sorted((u for u in updates if u.n_examples > 0), key=lambda u: u.client)
        entries = [
            Entry(u.client, u.n_examples, orders[u.client].assigned, u.slopes, u.clients)
            for u in heard
            if u.slopes is not None
        ]
        ctx = self.context(state, tuple(u.client for u in heard), cohort)
        if not self.averages_slopes:
            after, contributions, total, metrics, releases = self.apply(state, heard, ctx)
            record = RoundRecord(state.round + 1, tuple(entries))
            told = () if self.private else described(contributions, total)
            return Finished(after, record, told, metrics, releases)
        if any(m.on_wire for m in self.modifiers):
            return self.bounded(state, entries, ctx)
        kept, averaged, told, metrics = average_slopes(
            self.aggregator, state.of("aggregator"), entries, ctx
        )
        record = RoundRecord(state.round + 1, tuple(averaged))
        with_rule = replace(state, states=keep(state.states, "aggregator", kept))
        sums = {f"{i}/{g}": x for i, e in enumerate(averaged) for g, x in e.slopes.items()}
        releases = tuple(r for m in self.private for r in tagged(m, sums, ctx))
        told = () if self.private else told
        return Finished(self.replay(with_rule, record), record, told, metrics, releases)

    def bounded(self, state: RunState, entries: Sequence[Entry], ctx: ServerContext) -> Finished:
        """``finish``, where modifiers work on slopes as they travel: everybody's have one form, and
        the record has one entry whoever answered."""
        states = dict(state.states)
        fresh = [
            Contribution(e.client, e.n_examples, fitted(e.slopes, ctx.blank), clients=e.clients)
            for e in entries
            if e.slopes.keys() <= ctx.blank.keys()
        ]
        on_wire = [m for m in reversed(self.modifiers) if m.on_wire]
        for modifier in on_wire:
            fresh = [receive(modifier, c, states, ctx) for c in fresh]
        total, kept, metrics = self.aggregator(fresh, states.get("aggregator", {}), ctx)
        states = keep(states, "aggregator", kept)
        total, states, releases = self.let_out(total, states, ctx, on_wire)
        names = self.layout(state).names
        entry = Entry(0, 1, names, {g: x.float() for g, x in total.items()})
        record = RoundRecord(ctx.round, (entry,) if total else ())
        after = self.replay(replace(state, states=states), record)
        return Finished(after, record, (), metrics, releases)

    def let_out(
        self,
        total: Params,
        states: Mapping[str, State],
        ctx: ServerContext,
        modifiers: Iterable[Modifier],
    ) -> tuple[Params, dict[str, State], tuple[Release, ...]]:
        """The aggregate after the modifiers, their states, and what that releases."""
        releases: list[Release] = []
        new = dict(states)
        for modifier in modifiers:
            releases += tagged(modifier, total, ctx)
            total, own = modifier.on_aggregate(total, new.get(modifier.owner, {}), ctx)
            new = keep(new, modifier.owner, own)
        return total, new, tuple(releases)

    def replay(self, state: RunState, record: RoundRecord) -> RunState:
        """The state after the round that was recorded.

        Raises:
            ProtocolError: a record of another round, or that does not fit.
        """
        if record.round != state.round + 1 or record.sums:
            raise ProtocolError(f"a record of round {record.round} after round {state.round}")
        updates = []
        told = self.broadcast(state)
        for entry in record.entries:
            order = Order(
                self.key.value, record.round, entry.client, entry.assigned, state.params, told
            )
            plain = Update(entry.client, entry.n_examples, None, entry.slopes)
            updates.append(self.rebuild(order, plain))
        return self.apply(state, updates, self.context(state, tuple(u.client for u in updates)))[0]

    def missed(self, state: RunState, client: int) -> bytes | None:
        """What brings a client up to date that keeps the parameters; None: it needs them."""
        return state.log.missed(client)

    def broadcast(self, state: RunState) -> Params:
        """What the modifiers tell the clients, by "kind/parameter name", what the words say that
        count beside the features, and how much larger rates are, where they are."""
        told = {f"{WORDS}/{name}": x for name, x in state.of(WORDS).items()}
        folds = Folds.kept(state.of(FOLDS))
        if folds is not None and folds.rate != 1:
            told[RATE] = torch.tensor(folds.rate, dtype=torch.float64)
        return told | {
            f"{m.kind}/{name}": x
            for m in self.modifiers
            for name, x in m.broadcast(state.of(m.owner)).items()
        }

    def context(
        self, state: RunState, heard: tuple[int, ...], cohort: Cohort | None = None
    ) -> ServerContext:
        """What the parts of the server may read of the round after ``state``."""
        number = state.round + 1
        private = cohort is not None and any(m.on_wire for m in self.private)
        return ServerContext(
            round=number,
            key=self.key.fold("server", number),
            own=None if self.secret is None else self.secret.fold(number),
            units=self.units,
            params=state.params,
            cohort=heard,
            previous=state.of("previous"),
            divisor=cohort.expected if private and cohort else None,
            probability=cohort.probability if cohort else None,
            blank=self.layout(state).blank if private else {},
            times=folds.rate if (folds := Folds.kept(state.of(FOLDS))) else 1.0,
        )

    def apply(
        self, state: RunState, updates: Sequence[Update], ctx: ServerContext
    ) -> tuple[RunState, Sequence[Contribution], Params | None, Metrics, tuple[Release, ...]]:
        """The server's step, once enough has been collected: nothing moves that nobody trained.

        Returns:
            The new state, this round's contributions as they were aggregated, the aggregate (None:
            the server waits for more), the aggregator's numbers, and what is released.
        """
        modifiers = [
            m for m in reversed(self.modifiers) if not (self.averages_slopes and m.on_wire)
        ]
        states = dict(state.states)
        fresh = [contribution(u) for u in updates]
        for modifier in modifiers:
            fresh = [receive(modifier, c, states, ctx) for c in fresh]
        collected = (*state.pending, *fresh)
        if not self.trigger.enough(collected):
            waiting = replace(state, round=ctx.round, states=states, pending=collected)
            return waiting, fresh, None, {}, ()
        ordered = sorted((c for c in collected if c.weight > 0), key=lambda c: c.client)
        # slopes of one record are aggregated already; what is left are different parameters
        rule = self.aggregator if not self.averages_slopes else _over_parts(self.aggregator)
        if any(m.reads_last for m in self.modifiers):
            last, _, _ = rule([replace(c, delta=c.last_gradient) for c in ordered], {}, ctx)
            ctx = replace(ctx, last_gradient=last)
        total, kept, metrics = rule(ordered, state.of("aggregator"), ctx)
        if not self.private and not self.averages_slopes:
            metrics = {**metrics, **averaging_error(ordered, total, ctx)}
        states = keep(states, "aggregator", kept)
        if self.aggregator.remembers:
            states = keep(states, "previous", {**state.of("previous"), **total})
        total, states, releases = self.let_out(total, states, ctx, modifiers)
        moments, params = self.move(state, total)
        states = keep(states, "optimizer", moments)
        after = replace(state, round=ctx.round, params=params, states=states, pending=())
        return after, fresh, total, metrics, releases

    def move(self, state: RunState, total: Params) -> tuple[ServerState, Params]:
        """The optimiser's state and the parameters after a step along the aggregate."""
        optimiser = self.optimiser.at(state.round + 1, self.rounds)
        return optimiser.step(state.of("optimizer"), state.params, total, self.head)


def tagged(modifier: Modifier, total: Params, ctx: ServerContext) -> list[Release]:
    """What a modifier lets out by this sum. (Whoever repeats a round has no secret, and lets out
    nothing.)"""
    if ctx.own is None:
        return []
    made = modifier.releases(ctx)
    tag = ctx.own.fold("release", modifier.kind, trees.digest(total)).bytes[:8].hex()
    return [replace(r, tag=tag) for r in made]


def contribution(update: Update) -> Contribution:
    """An update, rebuilt where it came as slopes, as it is aggregated."""
    assert update.grad is not None, "updates are rebuilt before they are aggregated"
    about = update.client, update.n_examples, update.grad, update.variance, update.last
    return Contribution(*about, update.clients, update.beside)


def receive(
    modifier: Modifier, c: Contribution, states: dict[str, State], ctx: ServerContext
) -> Contribution:
    """One contribution through a modifier's server half, whose new state goes to ``states``."""
    c, own = modifier.on_receive(c, states.get(modifier.owner, {}), ctx)
    if own:
        states[modifier.owner] = own
    return c


def averaging_error(cs: Sequence[Contribution], total: Params, ctx: ServerContext) -> Metrics:
    """``lora_error``: how far the aggregate is from the mean of the clients' low-rank products
    (``aggregate.factored.missed``), where both factors of one were trained by several clients."""
    if len(cs) < 2 or any(c.clients > 1 for c in cs):
        return {}
    error = missed(cs, total, ctx)
    return {} if error is None else {"lora_error": round(error, 5)}


def _over_parts(aggregator: Aggregator) -> Aggregator:
    return aggregator if isinstance(aggregator, Mean) else Mean()
