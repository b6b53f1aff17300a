"""The transport between machines: orders to sites through a ``Post``, and one outcome for each.

What happens to an order follows from facts of the post: an answer is recognised by the question
that it answers, never by who claims to have sent it; a question and its answer live no longer than
the round's deadline; a node may come and go between two rounds, so members are asked anew each
time. Sites have numbers by their place in ``partition.names``; nodes of the post are only where
they happen to live.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from forefed.core.errors import ProtocolError
from forefed.core.terminal import one_line
from forefed.core.types import Json, Lost, Order, Reply
from forefed.deploy.envelope import Envelope
from forefed.deploy.parcels import (
    LONGEST_REASON,
    Failure,
    Letter,
    Parcel,
    Post,
    Task,
    carry,
    heard,
    introduction,
    parcels,
    send,
)
from forefed.federation.inprocess import ClientStore
from forefed.federation.replica import Replica
from forefed.sharing import Everything, Sharing
from forefed.wire.orders import encode_broadcast, encode_order

OTHER = {"weights": "other weights", "tokenizer": "another tokeniser"}
"""What a site must have as the server has it, and what it has otherwise."""
ROOM = 1 << 26  # bytes that an answer may have beyond four times the parameters

LARGEST_ANSWER = 1 << 28
"""Bytes of an answer to a question: sums of products of 8,000 features are half of it."""


@dataclass
class RemoteClients:
    """A ``Transport`` to sites. Who lives where changes in place, as the world does.

    ``run`` is the id of the run's first start, ``settings`` what sites need of its configuration.
    """

    post: Post
    run: str
    settings: str
    names: Sequence[str]
    weights: Mapping[str, str]
    """Digests of the frozen model and its tokeniser, which every site must have, and the number
    format; another format may be, and then nothing is known of the weights."""
    least: int = 1
    """A round begins when so many sites are there, or ``join_s`` later."""
    join_s: float = 120.0
    say: Callable[[str], None] = lambda _: None
    poll_s: float = 0.2
    sharing: Sharing = field(default_factory=Everything)
    """Which sites are given what, where that goes by their memory."""
    memory: dict[int, int] = field(default_factory=dict)
    """Client -> bytes, of the sites that have said it."""
    store: ClientStore = field(default_factory=ClientStore)  # stays empty: sites keep their own
    replica: Replica | None = None
    homes: dict[int, int] = field(default_factory=dict)
    """Client -> node."""
    joining: dict[str, int] = field(default_factory=dict)
    """Open questions "join" -> node."""
    at_work: dict[str, Task] = field(default_factory=dict)
    """Orders that stay on their way beyond a round, by question."""
    aggregators: set[int] = field(default_factory=set)
    """Nodes that speak for sites of their own."""
    turned_away: set[int] = field(default_factory=set)
    """Nodes that do not take part; asked again in the next round."""
    begun: bool = False
    said: set[str] = field(default_factory=set)

    def members(self) -> Sequence[int]:
        """The clients that are there; the first time all named sites are waited for. Nobody there
        is no round: then somebody is waited for."""
        wanted = self.least if self.begun else len(self.names)
        self.begun = True
        self.turned_away.clear()
        last = time.monotonic() + self.join_s
        asked_again = False
        while True:
            self.look_around(asked_again)
            asked_again = True
            late = time.monotonic() >= last
            if len(self.homes) >= wanted or (late and self.homes):
                return sorted(self.homes)
            if late:
                self.once("no site takes part; waiting for one")
                self.turned_away.clear()  # whoever was too slow to answer is asked again
                last = time.monotonic() + self.join_s
            time.sleep(self.poll_s)

    def look_around(self, again: bool = False) -> None:
        """Forget who has left, ask who is new, and hear who has answered.

        Args:
            again: ask aggregators, too, whether somebody has come to them.
        """
        nodes = self.post.nodes()
        for client, home in self.homes.items():
            if home not in nodes:
                self.tell_again(f"{self.names[client]} is gone", f"{self.names[client]} takes part")
        self.homes = {client: node for client, node in self.homes.items() if node in nodes}
        self.joining = {q: node for q, node in self.joining.items() if node in nodes}
        self.aggregators &= {*nodes}
        known = {*self.homes.values(), *self.joining.values(), *self.turned_away}
        if again:
            known -= self.aggregators - {*self.joining.values()}
        new = [node for node in nodes if node not in known]
        letter = Envelope("join", self.run, text=self.settings)
        asked = self.post.push([(node, letter) for node in new], self.join_s) if new else []
        self.joining |= {q: node for q, node in zip(asked, new, strict=True) if q is not None}
        for delivery in self.post.pull(list(self.joining)) if self.joining else []:
            node = self.joining.pop(delivery.question, None)
            if node is not None:
                self.welcome(node, nodes[node], delivery.content)

    def welcome(self, node: int, registered: str, answer: Envelope | Failure) -> None:
        """Take a site in that has answered "joined", or say why not."""
        try:
            about = introduction(answer)
            name = one_line(str(about.get("site")), LONGEST_REASON)
            if registered and name != registered:
                raise ProtocolError(
                    f"it calls itself '{name}', but its key is registered as '{registered}'"
                )
            sites = about.get("sites")
            if sites is None:
                self.take_in(node, about)
                return
            if not isinstance(sites, list) or not all(isinstance(x, dict) for x in sites):
                raise ProtocolError("its introduction names no sites")
        except ProtocolError as error:
            self.turned_away.add(node)
            self.once(f"{registered or 'a site'} does not take part: {error}")
            return
        self.aggregators.add(node)
        self.below(node, sites)

    def below(self, node: int, sites: Sequence[Json]) -> None:
        """Take in the sites of an aggregator, and forget those that it has no more."""
        there = set()
        for about in sites:
            name = one_line(str(about.get("site")), LONGEST_REASON)
            try:
                if "why" in about:
                    raise ProtocolError(one_line(str(about["why"]), LONGEST_REASON))
                self.take_in(node, about)
                there.add(name)
            except ProtocolError as error:
                self.once(f"{name} does not take part: {error}")
        for client, home in [*self.homes.items()]:
            if home == node and self.names[client] not in there:
                del self.homes[client]
                self.tell_again(f"{self.names[client]} is gone", f"{self.names[client]} takes part")

    def take_in(self, node: int, about: Json) -> None:
        """Let a site take part that lives at this node, or behind it.

        Raises:
            ProtocolError: why not.
        """
        name = one_line(str(about.get("site")), LONGEST_REASON)
        if name not in self.names:
            raise ProtocolError(f"'{name}' is not among partition.names")
        client = list(self.names).index(name)
        if self.homes.get(client, node) != node:
            raise ProtocolError(f"'{name}' has joined from another node already")
        for what, meant in OTHER.items():
            same_format = about.get("dtype") == self.weights["dtype"] or what != "weights"
            if same_format and about.get(what) != self.weights.get(what):
                raise ProtocolError(f"'{name}' has {meant} under the model's name")
        if about.get("dtype") != self.weights["dtype"]:
            form = one_line(str(about.get("dtype")), LONGEST_REASON)
            self.once(f"{name} computes in {form}")
        if self.sharing.by_memory:
            self.once(f"{name}: {self.sharing.granted(memory_said(name, about))}")
            self.memory[client] = memory_said(name, about)
        self.homes[client] = node
        self.tell_again(f"{name} takes part", f"{name} is gone")

    def tell_again(self, text: str, opposite: str) -> None:
        """Say it once, until the opposite is said."""
        self.once(text)
        self.said.discard(opposite)

    def once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.say(text)

    def exchange(
        self,
        orders: Iterable[Order],
        deadline_s: float | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.exchange``; the deadline is the life of every message, too."""
        yield from self.carry(list(self.letters(orders)), deadline_s, enough)

    def gather(
        self, orders: Iterable[Order], deadline_s: float | None, enough: Callable[[], bool]
    ) -> Iterator[Reply | Lost]:
        """As ``Standing.gather``; every order has the whole deadline from when it was sent."""
        assert deadline_s is not None, "config/compat.py wants one"
        at_work = {x.place for task in self.at_work.values() for x in task.parcel.letters}
        new = [o for o in orders if (o.round, o.client) not in at_work]
        sent = self.parcels(list(self.letters(new)))
        yield from send(self.post, sent, deadline_s, self.at_work)
        yield from heard(self.post, self.at_work, enough, self.poll_s)

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.tell``."""
        same: dict[bytes, bytes] = {}  # equal ones are one: an aggregator is sent it once
        letters = []
        for client, message in messages.items():
            blobs = {"question": same.setdefault(message, message)}
            one = Envelope("ask", self.run, round, client, self.settings, blobs)
            letters.append(Letter(one, self.names[client], LARGEST_ANSWER))
        yield from self.carry(letters, deadline_s, lambda: False)

    def carry(
        self, letters: Sequence[Letter], deadline_s: float | None, enough: Callable[[], bool]
    ) -> Iterator[Reply | Lost]:
        """Send letters to the homes of their clients; every client is in one outcome."""
        assert deadline_s is not None, "config/compat.py wants one"
        yield from carry(self.post, self.parcels(letters), deadline_s, enough, self.poll_s)

    def parcels(self, letters: Sequence[Letter]) -> Sequence[Parcel]:
        homes = {self.names[client]: node for client, node in self.homes.items()}
        return parcels(letters, homes, self.aggregators, self.below)

    def letters(self, orders: Iterable[Order]) -> Iterator[Letter]:
        """Every order as it travels; the broadcast is encoded once for all that have the same."""
        broadcasts: dict[int, bytes] = {}
        for order in orders:
            if order.missed is not None:
                held = {"missed": order.missed}
            else:
                which = id(order.params)
                if which not in broadcasts:
                    broadcasts[which] = encode_broadcast(order)
                held = {"state": broadcasts[which]}
            blobs = {**held, "order": encode_order(order)}
            place = (order.round, order.client)
            one = Envelope("train", self.run, *place, self.settings, blobs)
            largest = 4 * sum(x.nbytes for x in order.params.values()) + ROOM
            yield Letter(one, self.names[order.client], largest)


def memory_said(name: str, about: Json) -> int:
    """What a site's machine has, in bytes.

    Raises:
        ProtocolError: it says nothing of it, or nonsense.
    """
    said = about.get("memory")
    if not isinstance(said, int) or isinstance(said, bool) or not 0 < said < 2**63:
        raise ProtocolError(
            f"'{name}' names no memory (memory, in its site.toml), by which ranks go"
        )
    return said
