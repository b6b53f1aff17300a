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
from functools import partial
from typing import Protocol

from forefed.core.errors import ProtocolError
from forefed.core.terminal import one_line
from forefed.core.types import Json, LossReason, Lost, Order, Reply
from forefed.core.untrusted import json_table
from forefed.deploy.envelope import Envelope
from forefed.federation.inprocess import SURPLUS, ClientStore
from forefed.federation.replica import Replica
from forefed.wire.orders import encode_broadcast, encode_order

LONGEST_REASON = 300  # characters of a site's own words that are kept
OTHER = {"weights": "other weights", "tokenizer": "another tokeniser"}
"""What a site must have as the server has it, and what it has otherwise."""
ROOM = 1 << 26  # bytes that an answer may have beyond four times the parameters

LARGEST_ANSWER = 1 << 28
"""Bytes of an answer to a question: sums of products of 8,000 features are half of it."""


@dataclass(frozen=True)
class Failure:
    """What the post says of a question that no site answered."""

    reason: LossReason
    detail: str


@dataclass(frozen=True)
class Delivery:
    """What came for the question with this id."""

    question: str
    content: Envelope | Failure


class Post(Protocol):
    """Carries envelopes to nodes and back."""

    def nodes(self) -> Mapping[int, str]:
        """The nodes that are reachable now, with the names under which the operator has registered
        their keys ("": no name)."""

    def push(self, letters: Sequence[tuple[int, Envelope]], ttl_s: float) -> Sequence[str | None]:
        """An id for every (node, question); None where it could not be sent."""

    def pull(self, questions: Sequence[str]) -> Iterable[Delivery]:
        """What has come for these questions, each at most once."""


Judge = Callable[[Envelope | Failure], Reply | Lost]
"""What an answer to a letter means."""


@dataclass
class Task:
    """A letter that was sent, until ``last`` at most; ``came``: what was answered."""

    letter: Envelope
    judge: Judge
    last: float
    life_s: float
    came: Envelope | Failure | None = None

    def outcome(self) -> Reply | Lost:
        assert self.came is not None
        return self.judge(self.came)

    def lost(self, why: str) -> Lost:
        return Lost(self.letter.round, self.letter.client, "deadline", why, self.letter.size)


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
    store: ClientStore = field(default_factory=ClientStore)  # stays empty: sites keep their own
    replica: Replica | None = None
    homes: dict[int, int] = field(default_factory=dict)
    """Client -> node."""
    joining: dict[str, int] = field(default_factory=dict)
    """Open questions "join" -> node."""
    at_work: dict[str, Task] = field(default_factory=dict)
    """Orders that stay on their way beyond a round, by question."""
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
        while True:
            self.look_around()
            late = time.monotonic() >= last
            if len(self.homes) >= wanted or (late and self.homes):
                return sorted(self.homes)
            if late:
                self.once("no site takes part; waiting for one")
                self.turned_away.clear()  # whoever was too slow to answer is asked again
                last = time.monotonic() + self.join_s
            time.sleep(self.poll_s)

    def look_around(self) -> None:
        """Forget who has left, ask who is new, and hear who has answered."""
        nodes = self.post.nodes()
        for client, home in self.homes.items():
            if home not in nodes:
                self.tell_again(f"{self.names[client]} is gone", f"{self.names[client]} takes part")
        self.homes = {client: node for client, node in self.homes.items() if node in nodes}
        self.joining = {q: node for q, node in self.joining.items() if node in nodes}
        known = {*self.homes.values(), *self.joining.values(), *self.turned_away}
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
            about = _introduction(answer)
            name = one_line(str(about.get("site")), LONGEST_REASON)
            if registered and name != registered:
                raise ProtocolError(
                    f"it calls itself '{name}', but its key is registered as '{registered}'"
                )
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
        except ProtocolError as error:
            self.turned_away.add(node)
            self.once(f"{registered or 'a site'} does not take part: {error}")
            return
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
        yield from self.carry(self.ordered(orders), deadline_s, enough)

    def gather(
        self, orders: Iterable[Order], deadline_s: float | None, enough: Callable[[], bool]
    ) -> Iterator[Reply | Lost]:
        """As ``Standing.gather``; every order has the whole deadline from when it was sent."""
        at_work = {(t.letter.round, t.letter.client) for t in self.at_work.values()}
        new = [o for o in orders if (o.round, o.client) not in at_work]
        yield from self.send(self.ordered(new), deadline_s, self.at_work)
        yield from self.heard(self.at_work, enough)

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.tell``."""
        letters = [
            Envelope("ask", self.run, round, c, self.settings, {"question": message})
            for c, message in messages.items()
        ]
        asked = [(e, partial(self.answer, e)) for e in letters]
        yield from self.carry(asked, deadline_s, lambda: False)

    def carry(
        self,
        letters: Sequence[tuple[Envelope, Judge]],
        deadline_s: float | None,
        enough: Callable[[], bool],
    ) -> Iterator[Reply | Lost]:
        """Send letters to the homes of their clients; one outcome for each."""
        tasks: dict[str, Task] = {}
        yield from self.send(letters, deadline_s, tasks)
        yield from self.heard(tasks, enough)
        for task in tasks.values():
            yield task.lost(SURPLUS)

    def send(
        self,
        letters: Sequence[tuple[Envelope, Judge]],
        deadline_s: float | None,
        tasks: dict[str, Task],
    ) -> Iterator[Lost]:
        """Put letters among the tasks; a loss for each that could not be sent."""
        assert deadline_s is not None, "config/compat.py wants one"
        last = time.monotonic() + deadline_s
        sent = [(self.homes[e.client], e) for e, _ in letters]
        ids = self.post.push(sent, deadline_s) if sent else []
        for question, (letter, judge) in zip(ids, letters, strict=True):
            if question is None:
                yield Lost(letter.round, letter.client, "transport", "could not be sent")
            else:
                tasks[question] = Task(letter, judge, last, deadline_s)

    def heard(self, tasks: dict[str, Task], enough: Callable[[], bool]) -> Iterator[Reply | Lost]:
        """Outcomes as they come; whatever is left when there is enough stays among the tasks."""
        while tasks:
            for delivery in self.post.pull([q for q, t in tasks.items() if t.came is None]):
                task = tasks.get(delivery.question)
                if task is not None and task.came is None:  # else twice, or nobody asked
                    task.came = delivery.content
                    tasks[delivery.question] = tasks.pop(delivery.question)  # in order of arrival
            for question in [q for q, t in tasks.items() if t.came is not None]:
                if enough():
                    break
                yield tasks.pop(question).outcome()
            now = time.monotonic()
            for question in [q for q, t in tasks.items() if t.came is None and now >= t.last]:
                task = tasks.pop(question)
                yield task.lost(f"no answer within {task.life_s:g} s")
            if enough():
                return
            if tasks:
                time.sleep(self.poll_s)

    def ordered(self, orders: Iterable[Order]) -> list[tuple[Envelope, Judge]]:
        """The letters of orders, and what their answers mean."""
        return [(e, partial(self.outcome, o, e.size)) for o, e in self.letters(orders)]

    def letters(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Envelope]]:
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
            yield (
                order,
                Envelope("train", self.run, order.round, order.client, self.settings, blobs),
            )

    def outcome(self, order: Order, sent: int, content: Envelope | Failure) -> Reply | Lost:
        """What an answer to an order means."""
        largest = 4 * sum(x.nbytes for x in order.params.values()) + ROOM
        place = (order.round, order.client)
        return self.judged(place, ("trained", "update"), sent, largest, content)

    def answer(self, letter: Envelope, content: Envelope | Failure) -> Reply | Lost:
        """What an answer to a question means."""
        place = (letter.round, letter.client)
        return self.judged(place, ("answered", "answer"), letter.size, LARGEST_ANSWER, content)

    def judged(
        self,
        place: tuple[int, int],
        form: tuple[str, str],
        sent: int,
        largest: int,
        content: Envelope | Failure,
    ) -> Reply | Lost:
        """A reply, or a loss where what came is not for this letter, or too large.

        Args:
            place: round and client of the letter.
            form: the kind that the answer must have, and its only blob.
        """

        def lost(reason: LossReason, detail: str) -> Lost:
            return Lost(*place, reason, one_line(detail, LONGEST_REASON), sent)

        if isinstance(content, Failure):
            return lost(content.reason, content.detail)
        if content.kind in ("refused", "failed"):
            return lost("error", f"{content.kind}: {content.text}")
        if content.kind != form[0] or (content.run, content.round, content.client) != (
            self.run,
            *place,
        ):
            return lost("transport", "the answer is not for this order")
        if content.blobs.keys() != {form[1]} or len(content.blobs[form[1]]) > largest:
            return lost("transport", f"the answer has {content.size} bytes; at most {largest}")
        return Reply(*place, content.blobs[form[1]], sent)


def _introduction(answer: Envelope | Failure) -> Json:
    if isinstance(answer, Failure):
        raise ProtocolError(answer.detail)
    if answer.kind != "joined":
        raise ProtocolError(f"{answer.kind}: {one_line(answer.text, LONGEST_REASON)}")
    return json_table(answer.text, "its introduction")
