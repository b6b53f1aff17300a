"""The transport of a rehearsal: all clients in this process, everything through real bytes.

Losses can be simulated: per order one of the kinds of ``FaultSettings`` may strike, drawn from the
run's key. An offline client is never reached (no bytes); the others have received their order, and
their answer is lost before any work is done, which is the cheap half of the truth: what a crash
costs a real client is its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from forefed.channel.messages import phase_of
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
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
    Update,
)
from forefed.data.examples import ClientData
from forefed.federation.replica import Replica
from forefed.local.summed import Summing
from forefed.local.training import PRIVATE
from forefed.wire.message import kind_of
from forefed.wire.orders import decode_broadcast, decode_order, encode_broadcast, encode_order

SURPLUS = "the round had all the answers it wanted"

ClientFn = Callable[[Order, ClientData, ClientState, Secret | None], tuple[Update, ClientState]]


@dataclass
class ClientStore:
    """What clients keep between rounds, by client id. It stands for the clients' own disks, and is
    the one thing of a rehearsal that changes in place; a checkpoint saves it."""

    states: dict[int, ClientState] = field(default_factory=dict)
    sums: dict[int, bytes] = field(default_factory=dict)
    """What a client keeps between the phases of a secure sum; no checkpoint has it, as a round that
    is done again has another sum."""

    def private(self, client: int) -> Params:
        """The parameters that a client keeps to itself (none before its first round)."""
        return below(self.states.get(client, {}), PRIVATE)

    def flat(self) -> Params:
        return flat({str(c): state for c, state in self.states.items()})

    @staticmethod
    def unflat(tensors: Params) -> ClientStore:
        return ClientStore({int(c): state for c, state in of_flat(tensors).items()})


@dataclass(frozen=True)
class InProcess:
    """A ``Transport`` over a population whose data is looked up when a client is sampled."""

    population_size: int
    lookup: Callable[[int], ClientData]
    client: ClientFn
    encode: Callable[[Update, ClientContext], bytes]
    store: ClientStore = field(default_factory=ClientStore)
    faults: dict[LossReason, float] = field(default_factory=dict)
    replica: Replica | None = None
    """Stands for the clients that keep the parameters and follow by records, if they do."""
    secret: Secret | None = None
    """From which the secret of every client's round is derived."""
    answer: Callable[[bytes, ClientData], bytes] | None = None
    """Answers a question about a client's own rows (start/answer.py)."""
    seed: int = 0
    """Draws the losses of questions."""
    summing: Summing | None = None
    """The clients' half of a channel that hides single contributions."""

    def members(self) -> Sequence[int]:
        return range(self.population_size)

    def exchange(
        self,
        orders: Iterable[Order],
        deadline_s: float | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reply | Lost]:
        orders = list(orders)
        broadcast = b""
        received: tuple[Params, Params] | None = None
        kept = self.kept(orders)
        for order in orders:
            if order.missed is None and received is None:
                # one broadcast a round: encoded once, counted for every client
                broadcast = encode_broadcast(order)
                params, told, _ = decode_broadcast(broadcast)
                received = params, told if kept is None else kept[1]
            held = received if order.missed is None else kept
            assert held is not None, "records are sent to clients that a replica stands for"
            message = encode_order(order)
            bytes_down = len(message) + len(broadcast if order.missed is None else order.missed)
            reason = self.fault(order)
            if reason is not None:
                sent = 0 if reason == "offline" else bytes_down
                yield Lost(order.round, order.client, reason, "simulated", sent)
                continue
            if enough():
                yield Lost(order.round, order.client, "deadline", SURPLUS, bytes_down)
                continue
            started = time.perf_counter()
            came = decode_order(message, *held)
            secret = None
            if self.secret is not None:
                secret = self.secret.fold(order.client, order.round)
            kept_here = self.store.states.get(order.client, {})
            update, state = self.client(came, self.lookup(order.client), kept_here, secret)
            if state:
                self.store.states[order.client] = state
            try:
                payload = self.encoded(update, ClientContext(order=came, own=secret))
            except ProtocolError as error:
                yield Lost(order.round, order.client, "error", str(error), bytes_down)
                continue
            seconds = time.perf_counter() - started
            if deadline_s is not None and seconds > deadline_s:
                late = f"answered after {seconds:.1f} s"
                yield Lost(order.round, order.client, "deadline", late, bytes_down)
            else:
                yield Reply(order.round, order.client, payload, bytes_down)

    def ask(
        self, question: bytes, round: int, clients: Iterable[int], deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.ask``; losses strike as they strike orders."""
        yield from self.tell({client: question for client in clients}, round, deadline_s)

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.tell``; losses strike questions, and of the channel's phases the first one
        where a client is offline."""
        for client, message in messages.items():
            question = kind_of(message) == "question"
            reason = self.fault(Order(self.seed, round, client, (), {}))
            if reason is not None and (question or reason == "offline"):
                sent = 0 if reason == "offline" else len(message)
                yield Lost(round, client, reason, "simulated", sent)
                continue
            try:
                payload = self.answered(message, client, round)
            except ProtocolError as error:
                yield Lost(round, client, "error", str(error), len(message))
                continue
            yield Reply(round, client, payload, len(message))

    def encoded(self, update: Update, ctx: ClientContext) -> bytes:
        """A client's update as it travels.

        Raises:
            ProtocolError: it cannot be summed.
        """
        if self.summing is None:
            return self.encode(update, ctx)
        kept = self.store.sums.get(ctx.client)
        payload, self.store.sums[ctx.client] = self.summing.update(update, ctx.order, kept)
        return payload

    def answered(self, message: bytes, client: int, round: int) -> bytes:
        """A client's answer to one message.

        Raises:
            ProtocolError: it gives none.
        """
        data = self.lookup(client)
        if self.summing is None:
            assert self.answer is not None, "this federation has nobody who answers questions"
            return self.answer(message, data)
        assert self.secret is not None, "masks are drawn from a secret"
        own = self.secret.fold(client, round, "secure sum")
        kept = self.store.sums.get(client)
        payload, kept = self.summing.tell(message, client, data, kept, own)
        self.store.sums[client] = kept
        if phase_of(message) == "unmask":
            del self.store.sums[client]  # the sum is over, and whoever was asked may be a million
        return payload

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
