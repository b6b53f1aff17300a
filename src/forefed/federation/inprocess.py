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
from functools import partial

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
    drawn_from,
)
from forefed.data.examples import ClientData
from forefed.federation.replica import Replica
from forefed.local.party import Party
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
    phases: dict[int, bytes] = field(default_factory=dict)
    """What a client keeps between two phases of the channel; no checkpoint has it, as a round that
    is done again begins with the first one."""

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
        received: dict[int, tuple[bytes, tuple[Params, Params]]] = {}
        kept = self.kept(orders)
        for order in orders:
            if order.missed is None and id(order.params) not in received:
                # one broadcast a round and form: encoded once, counted for every client
                broadcast = encode_broadcast(order)
                params, told, _ = decode_broadcast(broadcast)
                mine = params, told if kept is None else kept[1]
                received[id(order.params)] = broadcast, mine
            held = kept
            if order.missed is None:
                broadcast, held = received[id(order.params)]
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
                upload = self.party.upload(update, ClientContext(order=came, own=secret))
                kept_phase = self.store.phases.get(order.client)
                own = partial(self.own, order.client, order.round)
                payload, kept_phase = self.party.send(upload, came, kept_phase, own)
                self.hold(order.client, kept_phase)
            except ProtocolError as error:
                yield Lost(order.round, order.client, "error", str(error), bytes_down)
                continue
            seconds = time.perf_counter() - started
            if deadline_s is not None and seconds > deadline_s:
                late = f"answered after {seconds:.1f} s"
                yield Lost(order.round, order.client, "deadline", late, bytes_down)
            else:
                yield Reply(order.round, order.client, payload, bytes_down)

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.tell``; losses strike questions as they strike orders, and the channel's
        other phases where a client is offline."""
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

    def answered(self, message: bytes, client: int, round: int) -> bytes:
        """A client's answer to one message.

        Raises:
            ProtocolError: it gives none.
        """
        data = self.lookup(client)
        kept, own = self.store.phases.get(client), partial(self.own, client, round)
        payload, kept = self.party.tell(message, client, data, kept, own)
        # after the last phase nothing is kept: whoever was asked may be a million
        self.hold(client, None if self.party.ends(message) else kept)
        return payload

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
