"""The transport of a rehearsal: all clients in this process, everything through real bytes.

Losses can be simulated: per order one of the kinds of ``FaultSettings`` may strike, drawn from the
run's key. An offline client is never reached (no bytes); the others have received their order, and
their answer is lost before any work is done, which is the cheap half of the truth: what a crash
costs a real client is its time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple, Protocol
from weakref import WeakMethod

from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.sizes import format_duration
from forefed.core.states import below, flat, of_flat
from forefed.core.types import (
    LOSS_REASONS,
    ClientContext,
    ClientState,
    LossReason,
    Lost,
    Order,
    Params,
    Reply,
    Transport,
    Update,
    drawn_from,
)
from forefed.data.examples import ClientData
from forefed.federation.replica import Replica
from forefed.federation.workers import Parts, Workers
from forefed.local.party import Party
from forefed.local.training import PRIVATE
from forefed.wire.message import kind_of, pack_tensors, unpack_tensors
from forefed.wire.orders import decode_broadcast, decode_order, encode_broadcast, encode_order

SURPLUS = "the round had all the answers it wanted"

ClientFn = Callable[[Order, ClientData, ClientState, Secret | None], tuple[Update, ClientState]]


@dataclass
class ClientStore:
    """What clients keep between rounds, by client id. It stands for the clients' own disks, and is
    the one thing of a rehearsal that changes in place; a checkpoint saves it."""

    states: dict[int, ClientState] = field(default_factory=dict)
    phases: dict[int, bytes] = field(default_factory=dict)
    """What a client keeps between two phases of the channel; no checkpoint has it, as a round that
    is done again begins with the first one."""
    held: dict[int, tuple[Params, Params]] = field(default_factory=dict)
    """In a worker: what the round's clients hold."""

    def private(self, client: int) -> Params:
        """The parameters that a client keeps to itself (none before its first round)."""
        return below(self.states.get(client, {}), PRIVATE)

    def flat(self) -> Params:
        return flat({str(c): state for c, state in self.states.items()})

    @staticmethod
    def unflat(tensors: Params) -> ClientStore:
        return ClientStore({int(c): state for c, state in of_flat(tensors).items()})


class Carrier(Transport, Protocol):
    """A transport, and what of its clients a checkpoint keeps (of real sites nothing)."""

    @property
    def store(self) -> ClientStore: ...

    @property
    def replica(self) -> Replica | None: ...

    @property
    def memory(self) -> Mapping[int, int]:
        """What clients' machines have, in bytes, as far as they have said it."""


class Around:
    """Base of a carrier around another one's: the same clients, and what is kept of them."""

    inner: Carrier

    @property
    def store(self) -> ClientStore:
        return self.inner.store

    @property
    def replica(self) -> Replica | None:
        return self.inner.replica

    @property
    def memory(self) -> Mapping[int, int]:
        return self.inner.memory

    def members(self) -> Sequence[int]:
        return self.inner.members()


Held = tuple[Params, Params]
"""Parameters and broadcast, as a client has them."""


class Measuring(Protocol):
    """Which clients' memory is measured, and how."""

    def due(self, order: Order, data: Callable[[], ClientData]) -> bool:
        """Is it to be measured at this one? Asked once for each order, in their order."""

    @property
    def client(self) -> ClientFn:
        """A client's work, with its first step's peak memory among its metrics."""


class Sent(NamedTuple):
    """An order on its way. ``held``: the number of what its client holds; ``reason``: of a
    simulated loss."""

    order: Order
    message: bytes
    held: int
    bytes_down: int
    reason: LossReason | None
    measure: bool


class Done(NamedTuple):
    """What came of an order: the answer, what the client keeps, of the channel's phase too, and
    why it would not answer ("": it does)."""

    payload: bytes
    state: ClientState
    phase: bytes | None
    seconds: float
    refused: str = ""


@dataclass(frozen=True)
class InProcess:
    """A ``Transport`` over a population whose data is looked up when a client is sampled."""

    population_size: int
    lookup: Callable[[int], ClientData]
    client: ClientFn
    party: Party
    """Their half of the channel."""
    store: ClientStore = field(default_factory=ClientStore)
    faults: dict[LossReason, float] = field(default_factory=dict)
    replica: Replica | None = None
    """Stands for the clients that keep the parameters and follow by records, if they do."""
    secret: Secret | None = None
    """From which the secret of every client's round is derived."""
    seed: int = 0
    """Draws the losses of questions."""
    measuring: Measuring | None = None
    workers: int = 1
    """Processes that do the clients' work (1: this one does)."""
    memory: Mapping[int, int] = field(default_factory=dict)
    """Stays empty: in a rehearsal the configuration says what clients have."""

    def members(self) -> Sequence[int]:
        return range(self.population_size)

    def exchange(
        self,
        orders: Iterable[Order],
        deadline_s: float | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reply | Lost]:
        helds, sent = self._sent([*orders])
        came = self._by_workers(helds, sent) if self.workers > 1 else None
        for one in sent:
            order = one.order
            if one.reason is not None:
                bytes_down = 0 if one.reason == "offline" else one.bytes_down
                yield Lost(order.round, order.client, one.reason, "simulated", bytes_down)
                continue
            if enough():
                if came is not None:
                    next(came)  # it is under way
                yield Lost(order.round, order.client, "deadline", SURPLUS, one.bytes_down)
                continue
            done = next(came) if came is not None else self._trained(one, helds)
            if done.state:
                self.store.states[order.client] = done.state
            if done.refused:
                yield Lost(order.round, order.client, "error", done.refused, one.bytes_down)
                continue
            self.hold(order.client, done.phase)
            if deadline_s is not None and done.seconds > deadline_s:
                late = f"answered after {format_duration(done.seconds)}"
                yield Lost(order.round, order.client, "deadline", late, one.bytes_down)
            else:
                yield Reply(order.round, order.client, done.payload, one.bytes_down)

    def _sent(self, orders: list[Order]) -> tuple[list[Held], list[Sent]]:
        """What clients hold once they have what goes to all, and every order as it goes."""
        helds: list[Held] = []
        numbers: dict[int, tuple[int, int]] = {}
        """Of parameters: the number of what is held, and the bytes of their broadcast."""
        sent: list[Sent] = []
        kept = self.kept(orders)
        if kept is not None:
            helds.append(kept)
        for order in orders:
            if order.missed is None and id(order.params) not in numbers:
                # one broadcast a round and form: encoded once, counted for every client
                broadcast = encode_broadcast(order)
                params, told, _ = decode_broadcast(broadcast)
                numbers[id(order.params)] = len(helds), len(broadcast)
                helds.append((params, told if kept is None else kept[1]))
            number, beside = 0, len(order.missed or b"")
            if order.missed is None:
                number, beside = numbers[id(order.params)]
            assert helds, "records are sent to clients that a replica stands for"
            message, reason = encode_order(order), self.fault(order)
            measure = False
            if reason is None and self.measuring is not None:
                measure = self.measuring.due(order, partial(self.lookup, order.client))
            sent.append(Sent(order, message, number, len(message) + beside, reason, measure))
        return helds, sent

    def _trained(self, one: Sent, helds: Sequence[Held]) -> Done:
        client = one.order.client
        kept, phase = self.store.states.get(client, {}), self.store.phases.get(client)
        return self.train(one.message, helds[one.held], kept, phase, one.measure)

    def train(
        self, message: bytes, held: Held, kept: ClientState, phase: bytes | None, measure: bool
    ) -> Done:
        """A client's work of one order; a function of these and its rows.

        Args:
            kept: by the client, from its last round.
            phase: what it kept from the channel's phase before.
            measure: the peak memory of its first step.
        """
        started = time.perf_counter()
        order = decode_order(message, *held)
        client, secret = order.client, None
        if self.secret is not None:
            secret = self.secret.fold(client, order.round)
        work = self.measuring.client if measure and self.measuring is not None else self.client
        update, state = work(order, self.lookup(client), kept, secret)
        try:
            upload = self.party.upload(update, ClientContext(order=order, own=secret))
            own = partial(self.own, client, order.round)
            payload, phase = self.party.send(upload, order, phase, own)
        except ProtocolError as error:
            return Done(b"", state, None, 0.0, str(error))
        return Done(payload, state, phase, time.perf_counter() - started)

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.tell``; losses strike questions as they strike orders, and the channel's
        other phases where a client is offline."""
        lost: dict[int, LossReason] = {}
        for client, message in messages.items():
            reason = self.fault(Order(self.seed, round, client, (), {}))
            if reason is not None and (kind_of(message) == "question" or reason == "offline"):
                lost[client] = reason
        asked = {c: m for c, m in messages.items() if c not in lost}
        came = self._answers_by_workers(asked, round) if self.workers > 1 else None
        for client, message in messages.items():
            if client in lost:
                sent = 0 if lost[client] == "offline" else len(message)
                yield Lost(round, client, lost[client], "simulated", sent)
                continue
            try:
                if came is None:
                    kept = self.store.phases.get(client)
                    payload, kept = self.answered(message, client, round, kept)
                else:
                    payload, kept = next(came)()
            except ProtocolError as error:
                yield Lost(round, client, "error", str(error), len(message))
                continue
            # after the last phase nothing is kept: whoever was asked may be a million
            self.hold(client, None if self.party.ends(message) else kept)
            yield Reply(round, client, payload, len(message))

    def answered(
        self, message: bytes, client: int, round: int, kept: bytes | None
    ) -> tuple[bytes, bytes | None]:
        """A client's answer to one message, and what it keeps of the exchange.

        Raises:
            ProtocolError: it gives none.
        """
        own = partial(self.own, client, round)
        return self.party.tell(message, client, self.lookup(client), kept, own)

    @cached_property
    def pool(self) -> Workers:
        """The workers; they are forked when the first work comes."""
        serve = WeakMethod(self.serve)

        def work(parts: Parts) -> Parts:
            alive = serve()
            assert alive is not None, "a worker has what it was forked from"
            return alive(parts)

        return Workers(self.workers, work)

    def _by_workers(self, helds: Sequence[Held], sent: Sequence[Sent]) -> Iterator[Done]:
        """What comes of the orders that are not lost, in their order."""
        common = [
            [b"held", str(i).encode(), *map(pack_tensors, held)] for i, held in enumerate(helds)
        ]
        tasks = []
        for one in sent:
            client = one.order.client
            kept = pack_tensors(self.store.states.get(client, {}))
            about = json.dumps([one.held, one.measure]).encode()
            phase = _optional(self.store.phases.get(client))
            if one.reason is None:
                tasks.append((client, [b"order", about, one.message, kept, phase]))
        for found in self.pool.each(common, tasks):
            if isinstance(found, ProtocolError):
                raise found
            seconds, refused = json.loads(found[0])
            state = unpack_tensors(found[2])
            yield Done(found[1], state, _given(found[3]), seconds, refused)

    def _answers_by_workers(
        self, asked: Mapping[int, bytes], round: int
    ) -> Iterator[Callable[[], tuple[bytes, bytes | None]]]:
        """What ``answered`` gives, or raises, of every message."""
        tasks = []
        for client, message in asked.items():
            about = json.dumps([client, round]).encode()
            phase = _optional(self.store.phases.get(client))
            tasks.append((client, [b"tell", about, message, phase]))
        for found in self.pool.each([], tasks):
            yield partial(_answer_of, found)

    def serve(self, parts: Parts) -> Parts:
        """A worker's half of what it is asked."""
        kind, about, *rest = parts
        if kind == b"held":
            params, told = map(unpack_tensors, rest)
            self.store.held[int(about)] = params, told
            return []
        if kind == b"tell":
            client, round = json.loads(about)
            payload, kept = self.answered(rest[0], client, round, _given(rest[1]))
            return [payload, _optional(kept)]
        number, measure = json.loads(about)
        message, state, phase = rest
        mine = unpack_tensors(state)
        done = self.train(message, self.store.held[number], mine, _given(phase), measure)
        said = json.dumps([done.seconds, done.refused]).encode()
        return [said, done.payload, pack_tensors(done.state), _optional(done.phase)]

    def own(self, client: int, round: int) -> Secret:
        """A client's secret of an exchange."""
        return drawn_from(self.secret).fold(client, round, "channel")

    def hold(self, client: int, kept: bytes | None) -> None:
        """What a client keeps for the next phase."""
        if kept is not None:
            self.store.phases[client] = kept
        else:
            self.store.phases.pop(client, None)

    def kept(self, orders: Sequence[Order]) -> tuple[Params, Params] | None:
        """Parameters and broadcast that clients hold once they have followed their records."""
        if self.replica is None or not orders:
            return None
        missed = next((o.missed for o in orders if o.missed is not None), None)
        if missed is not None:
            self.replica.catch_up(missed)
        else:
            params, _, carried = decode_broadcast(encode_broadcast(orders[0]))
            self.replica.receive(orders[0].round, params, carried)
        return self.replica.held()

    def fault(self, order: Order) -> LossReason | None:
        """The kind of loss that strikes this order, if any."""
        if not any(self.faults.values()):
            return None
        drawn = float(order.key.fold("fault").uniform((1,)))
        for reason in LOSS_REASONS:
            drawn -= self.faults.get(reason, 0.0)
            if drawn < 0:
                return reason
        return None


def _optional(data: bytes | None) -> bytes:
    return b"" if data is None else b"\1" + data


def _given(data: bytes) -> bytes | None:
    return data[1:] if data else None


def _answer_of(found: Parts | ProtocolError) -> tuple[bytes, bytes | None]:
    if isinstance(found, ProtocolError):
        raise found
    return found[0], _given(found[1])
