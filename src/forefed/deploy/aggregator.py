"""An aggregator: a site towards its server, and a server towards its own sites.

It hands letters on and answers with the sums of what comes back (channel/partial_sums.py). Orders,
keys and settings are the server's, so every site does what it would do below the server itself, and
sums of whole numbers have the same bits. It needs no model and no rows, keeps nothing on its disk,
and trusts nobody: what does not fit a sum is left out with its reason, and the server
checks weights and names of every site as if it were its own.

What it sees: the contributions of its own sites. Its sites may be aggregators themselves.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from forefed.channel.partial_sums import Adding, PartialSums
from forefed.core.errors import ProtocolError
from forefed.core.terminal import one_line
from forefed.core.types import Json, Lost, Reply
from forefed.core.untrusted import json_table
from forefed.deploy.envelope import Envelope
from forefed.deploy.parcels import (
    LONGEST_REASON,
    SHARE_OF_TIME,
    Letter,
    Post,
    carry,
    introduction,
    letters_of,
    packed,
    parcels,
)

log = logging.getLogger("forefed.aggregator")
JOIN_S = 120.0
"""How long a site may take to answer that it takes part: it loads its model first."""
WAIT_S = 2.0
"""After which the server hears of those that have answered; it asks again."""
LARGEST = 1 << 28
"""Bytes of one site's answer."""


@dataclass
class Aggregator:
    """Answers a server's envelopes, as a site does. Who lives where changes in place."""

    name: str
    post: Post
    poll_s: float = 0.1
    wait_s: float = WAIT_S
    run: str = ""
    homes: dict[str, int] = field(default_factory=dict)
    """Site -> node, of this run."""
    about: dict[int, list[Json]] = field(default_factory=dict)
    """What the sites of a node say of themselves, or why they take no part."""
    below: set[int] = field(default_factory=set)
    """Nodes that are aggregators."""
    joining: dict[str, int] = field(default_factory=dict)
    """Open questions "join" -> node."""

    def __call__(self, asked: Envelope) -> Envelope:
        answered = replace(asked, text="", blobs={})
        try:
            if asked.kind == "join":
                return self.joined(asked, answered)
            if asked.kind == "letters":
                return self.summed(asked, answered)
            raise ProtocolError(f"an aggregator is not asked '{asked.kind}'")
        except ProtocolError as error:
            log.warning("refused: %s", error)
            return replace(answered, kind="refused", text=str(error))

    def joined(self, asked: Envelope, answered: Envelope) -> Envelope:
        """Who takes part here. Waits a little for sites that have not answered."""
        check_channel(asked.text)
        last = time.monotonic() + self.wait_s
        self.meet(asked.run, asked.text)
        while self.joining and time.monotonic() < last:
            time.sleep(self.poll_s)
            self.meet(asked.run, asked.text)
        said = {"site": self.name, "sites": self.sites()}
        return replace(answered, kind="joined", text=json.dumps(said))

    def sites(self) -> list[Json]:
        return [one for some in self.about.values() for one in some]

    def meet(self, run: str, settings: str) -> None:
        """Forget who has left, ask who is new, and hear who has answered."""
        if run != self.run:
            self.run = run
            for held in (self.homes, self.about, self.below, self.joining):
                held.clear()
        nodes = self.post.nodes()
        for node in [n for n in self.about if n not in nodes]:
            self.forget(node)
        self.joining = {q: node for q, node in self.joining.items() if node in nodes}
        new = [n for n in nodes if n not in self.about and n not in self.joining.values()]
        letter = Envelope("join", run, text=settings)
        ids = self.post.push([(node, letter) for node in new], JOIN_S) if new else []
        self.joining |= {q: node for q, node in zip(ids, new, strict=True) if q is not None}
        for delivery in self.post.pull(list(self.joining)) if self.joining else []:
            if delivery.question in self.joining:
                node = self.joining.pop(delivery.question)
                try:
                    self.take_in(node, nodes[node], introduction(delivery.content))
                except ProtocolError as error:
                    self.about[node] = [{"site": nodes[node] or "a site", "why": str(error)}]
                log.info("%s", self.about[node])

    def take_in(self, node: int, registered: str, about: Json) -> None:
        """Let a node take part.

        Raises:
            ProtocolError: why not.
        """
        name = one_line(str(about.get("site")), LONGEST_REASON)
        if registered and name != registered:
            raise ProtocolError(
                f"it calls itself '{name}', but its key is registered as '{registered}'"
            )
        sites = about.get("sites", [about])
        if not isinstance(sites, list) or not all(isinstance(x, dict) for x in sites):
            raise ProtocolError("its introduction names no sites")
        if "sites" in about:
            self.below.add(node)
        self.hear(node, sites)

    def hear(self, node: int, sites: Sequence[Json]) -> None:
        """Who is there at a node, or below it."""
        self.homes = {name: home for name, home in self.homes.items() if home != node}
        self.about[node] = []
        for one in sites:
            name = str(one.get("site"))
            if name in self.homes:
                one = {"site": name, "why": f"'{name}' has joined from another node already"}
            self.about[node].append(one)
            if "why" not in one:
                self.homes[name] = node

    def forget(self, node: int) -> None:
        self.hear(node, [])
        del self.about[node]
        self.below.discard(node)

    def summed(self, asked: Envelope, answered: Envelope) -> Envelope:
        """Hand letters on, and add up what comes back."""
        letters, settings, deadline_s = letters_of(asked)
        check_channel(settings)
        last = time.monotonic() + SHARE_OF_TIME * deadline_s
        self.meet(asked.run, settings)
        missing = {site for site, _ in letters} - self.homes.keys()
        while missing and self.joining and time.monotonic() < last:  # it was started anew
            time.sleep(self.poll_s)
            self.meet(asked.run, settings)
            missing = {site for site, _ in letters} - self.homes.keys()
        there = [Letter(one, site, LARGEST) for site, one in letters if site in self.homes]
        outcomes: list[Reply | Lost] = [
            Lost(one.round, one.client, "offline", f"it is not connected to '{self.name}'")
            for site, one in letters
            if site not in self.homes
        ]
        left_s = max(1.0, last - time.monotonic())
        outcomes += added(self._carried(there, left_s), asked.round)
        log.info("round %d: %d letters, %d outcomes", asked.round, len(letters), len(outcomes))
        return packed(answered, outcomes, self.sites())

    def _carried(self, letters: list[Letter], left_s: float) -> Iterator[Reply | Lost]:
        sent = parcels(letters, self.homes, self.below, self.hear)
        return carry(self.post, sent, left_s, poll_s=self.poll_s)


def added(outcomes: Iterator[Reply | Lost], round: int) -> list[Reply | Lost]:
    """Sums of the answers, and everybody who is in none."""
    adding, found = Adding(), list[Reply | Lost]()
    for outcome in outcomes:
        if isinstance(outcome, Lost):
            found.append(outcome)
            continue
        try:
            adding.take(outcome.clients, outcome.payload)
        except ProtocolError as error:
            found += [Lost(round, c, "transport", str(error)) for c in outcome.clients]
    found += [Reply(round, who[0], payload, 0, who) for who, payload in adding.messages()]
    return found


def check_channel(settings: str) -> None:
    """Raises ProtocolError: a run whose contributions are not to be added up."""
    channel = json_table(settings, "the run's settings").get("channel")
    kind = channel.get("kind") if isinstance(channel, dict) else None
    if kind != PartialSums.kind_name():
        raise ProtocolError(
            f"an aggregator adds up, and channel.kind = '{one_line(str(kind), 40)}' is not for "
            f"that; set channel.kind = '{PartialSums.kind_name()}'"
        )
