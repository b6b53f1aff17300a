"""Letters on their way to sites, one by one or several to an aggregator, and what comes back.

A parcel is what goes to one node. A site's is one letter. An aggregator's has the letters of all
its sites, in which what several have in common stands once; its answer has sums of theirs
(channel/partial_sums.py), and a reason for everybody who is in none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, get_args

from forefed.core.errors import ProtocolError
from forefed.core.terminal import one_line
from forefed.core.types import Json, LossReason, Lost, Reply
from forefed.core.untrusted import json_table
from forefed.deploy.envelope import Envelope
from forefed.federation.inprocess import SURPLUS

LONGEST_REASON = 300  # characters of somebody else's own words that are kept
SHARE_OF_TIME = 0.9
"""Of the time for a parcel, that an aggregator waits for its sites."""


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


@dataclass(frozen=True)
class Letter:
    """One client's order or question. ``largest``: bytes that its answer may have."""

    envelope: Envelope
    site: str
    largest: int

    @property
    def place(self) -> tuple[int, int]:
        return self.envelope.round, self.envelope.client

    def lost(self, reason: LossReason, detail: str, sent: int | None = None) -> Lost:
        size = self.envelope.size if sent is None else sent
        return Lost(*self.place, reason, one_line(detail, LONGEST_REASON), size)


class Parcel(Protocol):
    """What goes to one node."""

    @property
    def node(self) -> int: ...

    @property
    def letters(self) -> Sequence[Letter]:
        """What it holds."""

    def envelope(self, deadline_s: float) -> Envelope:
        """As it travels; who hands it on has so much time."""

    def opened(self, content: Envelope | Failure) -> Iterator[Reply | Lost]:
        """What an answer means for every letter."""


ANSWERS = {"train": ("trained", "update"), "ask": ("answered", "answer")}
"""To each kind of letter the kind that the answer must have, and its only blob."""


@dataclass(frozen=True)
class Single:
    """One letter, to its site."""

    node: int
    letter: Letter

    @property
    def letters(self) -> Sequence[Letter]:
        return (self.letter,)

    def envelope(self, deadline_s: float) -> Envelope:
        return self.letter.envelope

    def opened(self, content: Envelope | Failure) -> Iterator[Reply | Lost]:
        asked, lost = self.letter.envelope, self.letter.lost
        if isinstance(content, Failure):
            yield lost(content.reason, content.detail)
            return
        kind, blob = ANSWERS[asked.kind]
        if content.kind in ("refused", "failed"):
            yield lost("error", f"{content.kind}: {content.text}")
        elif content.kind != kind or not answers(content, asked):
            yield lost("transport", "the answer is not for this order")
        elif content.blobs.keys() != {blob} or len(content.blobs[blob]) > self.letter.largest:
            most = self.letter.largest
            yield lost("transport", f"the answer has {content.size} bytes; at most {most}")
        else:
            yield Reply(*self.letter.place, content.blobs[blob], asked.size)


@dataclass(frozen=True)
class Bundle:
    """Letters for an aggregator's sites."""

    node: int
    letters: Sequence[Letter]
    heard: Callable[[int, Sequence[Json]], None] = lambda node, sites: None
    """Told who is there below the node."""
    written: list[Envelope] = field(default_factory=list)

    def envelope(self, deadline_s: float) -> Envelope:
        blobs: dict[str, bytes] = {}
        places: dict[int, str] = {}
        said = []
        for letter in self.letters:
            one = letter.envelope
            for blob in one.blobs.values():
                if id(blob) not in places:
                    places[id(blob)] = str(len(blobs))
                    blobs[places[id(blob)]] = blob
            parts = {name: places[id(blob)] for name, blob in one.blobs.items()}
            said.append([one.kind, one.client, letter.site, parts])
        first = self.letters[0].envelope
        text = {"settings": first.text, "deadline_s": deadline_s, "letters": said}
        made = replace(first, kind="letters", text=json.dumps(text), blobs=blobs)
        self.written[:] = [made]
        return made

    def opened(self, content: Envelope | Failure) -> Iterator[Reply | Lost]:
        asked = self.written[0]
        first, *others = self.letters
        sent = {first.place[1]: asked.size} | {x.place[1]: 0 for x in others}
        try:
            outcomes = self._outcomes(asked, content)
        except ProtocolError as error:
            outcomes = [x.lost("transport", str(error)) for x in self.letters]
        for outcome in outcomes:
            size = sum(sent.pop(client, 0) for client in outcome.clients)
            yield replace(outcome, bytes_down=size)

    def _outcomes(self, asked: Envelope, content: Envelope | Failure) -> list[Reply | Lost]:
        if isinstance(content, Failure):
            return [x.lost(content.reason, content.detail) for x in self.letters]
        if content.kind in ("refused", "failed"):
            return [x.lost("error", f"{content.kind}: {content.text}") for x in self.letters]
        if content.kind != "summed" or not answers(content, asked):
            raise ProtocolError("the answer is not for these orders")
        largest = max(x.largest for x in self.letters)
        if any(len(blob) > largest for blob in content.blobs.values()):
            raise ProtocolError(f"a sum has more than {largest} bytes")
        found, sites = unpacked(content)
        if sorted(c for x in found for c in x.clients) != sorted(x.place[1] for x in self.letters):
            raise ProtocolError("the answer is for other clients")
        self.heard(self.node, sites)
        return found


def answers(content: Envelope, asked: Envelope) -> bool:
    """Is it about the same run, round and client?"""
    places = [(e.run, e.round, e.client) for e in (content, asked)]
    return places[0] == places[1]


def letters_of(asked: Envelope) -> tuple[list[tuple[str, Envelope]], str, float]:
    """What an aggregator was handed: letters with the names of their sites, the run's settings, and
    the seconds for all of it.

    Raises:
        ProtocolError: something that no server of this version sends.
    """
    said = json_table(asked.text, "the letters")
    try:
        settings, deadline_s = str(said["settings"]), float(said["deadline_s"])
        letters = []
        for kind, client, site, parts in said["letters"]:
            if kind not in ANSWERS or not isinstance(client, int):
                raise ValueError(kind)
            blobs = {str(name): asked.blobs[place] for name, place in parts.items()}
            one = Envelope(kind, asked.run, asked.round, client, settings, blobs)
            letters.append((str(site), one))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"the letters cannot be read: {error!r}") from None
    return letters, settings, deadline_s


def packed(asked: Envelope, outcomes: Sequence[Reply | Lost], sites: Sequence[Json]) -> Envelope:
    """An aggregator's answer."""
    sums = [x for x in outcomes if isinstance(x, Reply)]
    lost = [[x.client, x.reason, x.detail] for x in outcomes if isinstance(x, Lost)]
    said = {"sums": [list(x.clients) for x in sums], "lost": lost, "sites": list(sites)}
    blobs = {str(i): x.payload for i, x in enumerate(sums)}
    return replace(asked, kind="summed", text=json.dumps(said), blobs=blobs)


def unpacked(content: Envelope) -> tuple[list[Reply | Lost], list[Json]]:
    """The inverse: outcomes, and who is there below the aggregator.

    Raises:
        ProtocolError: something that no aggregator of this version sends.
    """
    said = json_table(content.text, "the sums")
    found: list[Reply | Lost] = []
    try:
        for i, clients in enumerate(said["sums"]):
            who = tuple(int(c) for c in clients)
            found.append(Reply(content.round, who[0], content.blobs[str(i)], 0, who))
        for client, reason, detail in said["lost"]:
            if reason not in get_args(LossReason):
                raise ValueError(reason)
            detail = one_line(str(detail), LONGEST_REASON)
            found.append(Lost(content.round, int(client), reason, detail))
        sites = [dict(one) for one in said["sites"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ProtocolError(f"the sums cannot be read: {error!r}") from None
    return found, sites


def parcels(
    letters: Sequence[Letter],
    homes: Mapping[str, int],
    aggregators: Iterable[int],
    heard: Callable[[int, Sequence[Json]], None] = lambda node, sites: None,
) -> list[Parcel]:
    """Letters by the nodes that they go to.

    Args:
        homes: site -> node.
        aggregators: nodes that hand letters on.
    """
    made: list[Parcel] = []
    bundles: dict[int, list[Letter]] = {node: [] for node in aggregators}
    for letter in letters:
        node = homes[letter.site]
        if node in bundles:
            bundles[node].append(letter)
        else:
            made.append(Single(node, letter))
    return made + [Bundle(node, some, heard) for node, some in bundles.items() if some]


@dataclass
class Task:
    """A parcel that was sent, until ``last`` at most; ``came``: what was answered."""

    parcel: Parcel
    last: float
    life_s: float
    came: Envelope | Failure | None = None

    def outcomes(self) -> Iterator[Reply | Lost]:
        assert self.came is not None
        return self.parcel.opened(self.came)

    def lost(self, why: str) -> Iterator[Lost]:
        return (letter.lost("deadline", why) for letter in self.parcel.letters)


def carry(
    post: Post,
    sent: Sequence[Parcel],
    deadline_s: float,
    enough: Callable[[], bool] = lambda: False,
    poll_s: float = 0.2,
) -> Iterator[Reply | Lost]:
    """Send parcels, and tell what becomes of every letter."""
    tasks: dict[str, Task] = {}
    yield from send(post, sent, deadline_s, tasks)
    yield from heard(post, tasks, enough, poll_s)
    for task in tasks.values():
        yield from task.lost(SURPLUS)


def send(
    post: Post, sent: Sequence[Parcel], deadline_s: float, tasks: dict[str, Task]
) -> Iterator[Lost]:
    """Put parcels among the tasks; a loss for each letter that could not be sent."""
    last = time.monotonic() + deadline_s
    pushed = [(p.node, p.envelope(deadline_s)) for p in sent]
    ids = post.push(pushed, deadline_s) if pushed else []
    for question, parcel in zip(ids, sent, strict=True):
        if question is None:
            for letter in parcel.letters:
                yield letter.lost("transport", "could not be sent", 0)
        else:
            tasks[question] = Task(parcel, last, deadline_s)


def heard(
    post: Post, tasks: dict[str, Task], enough: Callable[[], bool], poll_s: float
) -> Iterator[Reply | Lost]:
    """Outcomes as they come; whatever is left when there is enough stays among the tasks."""
    while tasks:
        for delivery in post.pull([q for q, t in tasks.items() if t.came is None]):
            task = tasks.get(delivery.question)
            if task is not None and task.came is None:  # else twice, or nobody asked
                task.came = delivery.content
                tasks[delivery.question] = tasks.pop(delivery.question)  # in order of arrival
        for question in [q for q, t in tasks.items() if t.came is not None]:
            if enough():
                break
            yield from tasks.pop(question).outcomes()
        now = time.monotonic()
        for question in [q for q, t in tasks.items() if t.came is None and now >= t.last]:
            task = tasks.pop(question)
            yield from task.lost(f"no answer within {task.life_s:g} s")
        if enough():
            return
        if tasks:
            time.sleep(poll_s)


def introduction(answer: Envelope | Failure) -> Json:
    """What a node says of itself.

    Raises:
        ProtocolError: it does not take part, with its reason.
    """
    if isinstance(answer, Failure):
        raise ProtocolError(answer.detail)
    if answer.kind != "joined":
        raise ProtocolError(f"{answer.kind}: {one_line(answer.text, LONGEST_REASON)}")
    return json_table(answer.text, "its introduction")
