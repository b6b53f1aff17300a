"""A rehearsal of a hierarchy: between the clients in this process and the server stand aggregators.

Each adds up what its clients answer (channel/partial_sums.py), and the server is sent its sums.
Bytes are those between server and aggregators: what is the same for several clients goes to their
aggregator once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from forefed.channel.partial_sums import Adding
from forefed.core.errors import ProtocolError
from forefed.core.types import Lost, Order, Reply
from forefed.federation.inprocess import Around, InProcess
from forefed.wire.orders import encode_broadcast


@dataclass(frozen=True)
class Aggregators(Around):
    """A ``Transport`` whose clients are divided between ``count`` aggregators."""

    inner: InProcess
    count: int

    def of(self, client: int) -> int:
        """The number of a client's aggregator."""
        return client % self.count

    def exchange(
        self,
        orders: Iterable[Order],
        deadline_s: float | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.exchange``."""
        asked = {order.client: order for order in orders}
        sizes: dict[int, int] = {}
        """Of a broadcast in its forms, by parameters."""
        common: dict[int, tuple[int, int]] = {}
        for client, order in asked.items():
            if order.missed is None:
                form = id(order.params)
                if form not in sizes:
                    sizes[form] = len(encode_broadcast(order))
                common[client] = form, sizes[form]
        outcomes = self.inner.exchange(asked.values(), deadline_s, enough)
        yield from self._added(outcomes, [*asked], common)

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.tell``."""
        outcomes = self.inner.tell(messages, round, deadline_s)
        same: dict[bytes, int] = {}
        common = {c: (same.setdefault(m, len(same)), len(m)) for c, m in messages.items()}
        yield from self._added(outcomes, [*messages], common)

    def _added(
        self,
        outcomes: Iterable[Reply | Lost],
        clients: Sequence[int],
        common: Mapping[int, tuple[int, int]],
    ) -> Iterator[Reply | Lost]:
        """Losses as they come, and an aggregator's sums once it has heard of all its clients.

        Args:
            common: of what a client is sent: the number of a part that others are sent, too, and
                its bytes.
        """
        there = {self.of(c): Level() for c in clients}
        for client in clients:
            there[self.of(client)].waits_for += 1
        for outcome in outcomes:
            level = there[self.of(outcome.client)]
            level.waits_for -= 1
            part = common.get(outcome.client)
            if part is not None and outcome.bytes_down:
                saved = part[1] if part[0] in level.sent else 0
                level.sent.add(part[0])
                outcome = replace(outcome, bytes_down=outcome.bytes_down - saved)
            lost = level.take(outcome)
            if lost is not None:
                yield lost
            if not level.waits_for:
                yield from level.sums(outcome.round)


class Level:
    """One aggregator in one exchange."""

    def __init__(self) -> None:
        self.adding = Adding()
        self.waits_for = 0
        self.sent: set[int] = set()
        """Numbers of the parts that it has been sent."""
        self.bytes_down = 0
        """Of what its clients' answers have cost."""

    def take(self, outcome: Reply | Lost) -> Lost | None:
        """An answer into the sum, or what is lost."""
        if isinstance(outcome, Lost):
            return outcome
        try:
            self.adding.take(outcome.clients, outcome.payload)
        except ProtocolError as error:
            at = outcome.round, outcome.client
            return Lost(*at, "transport", str(error), outcome.bytes_down)
        self.bytes_down += outcome.bytes_down
        return None

    def sums(self, round: int) -> Iterator[Reply]:
        """What goes up."""
        down = self.bytes_down
        for clients, payload in self.adding.messages():
            yield Reply(round, clients[0], payload, down, clients)
            down = 0
