"""The scalar log without a server: a set that only grows, which peers exchange until all have it.

Ours, after version vectors and append-only logs of replicated systems (Demers et al., "Epidemic
algorithms for replicated database maintenance", PODC 1987; Shapiro et al., "Conflict-free
replicated data types", 2011). Every peer has one **chain**: what it contributed, round by round,
each record linked to those before it by a hash; its author signs the last link, which vouches for
all. A peer tells how much it has of every chain (``have``), and is given the rest.

    link_i = SHA-256("forefed-link-1" | link_{i-1} | round u32 | payload);  link_{-1} = run's id
    signed   "forefed-chain-1" | run's id | author u32 | length u32 | last link

Of two chains of one author the better one stays: the longer, if it goes on from the other; else,
where they part, that with the smaller link. This is a total order, so joining is commutative,
associative and idempotent: whoever has heard of the same chains has the same ones, whatever was
lost, repeated or overtaken on the way. Chains part only where an author says two things (it lies,
or its disk was restored): then everybody takes the same one of them.

Nothing is believed without a signature: whoever passes a chain on can shorten it, not change it,
and a record of another run, round or author fits nowhere.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from forefed.core.errors import ProtocolError
from forefed.wire.message import Limits, pack, unpack

Verify = Callable[[int, bytes, bytes], bool]
"""(author, what was signed, signature) -> is it the author's?"""
MAX_RECORD = 1 << 20
"""Bytes of one contribution."""
MAX_GIVEN = 1 << 26
"""Bytes of all that one message gives, unpacked."""
LIMITS = Limits(meta=1 << 20, body=MAX_GIVEN)
_ENTRY = struct.Struct("<II")
SIGNATURE = 64

Have = Mapping[int, tuple[int, str]]
"""By author: how many records, and the last link in hex."""


class Foreign(ProtocolError):
    """Of another run, or not signed by the one who is said to have written it."""


@dataclass(frozen=True)
class Chain:
    """What one author contributed, in the order of the rounds."""

    rounds: tuple[int, ...] = ()
    payloads: tuple[bytes, ...] = ()
    links: tuple[bytes, ...] = ()
    signature: bytes = b""

    def __len__(self) -> int:
        return len(self.rounds)

    def at(self, length: int) -> str:
        """The link that ends its first records, in hex."""
        return self.links[length - 1].hex() if length else ""

    def parts(self, other: Chain) -> int:
        """How many records both have in common, from the first on."""
        pairs = zip(self.links, other.links, strict=False)
        same = (i for i, (a, b) in enumerate(pairs) if a != b)
        return next(same, min(len(self), len(other)))

    def better(self, other: Chain) -> bool:
        """Would everybody take this one before the other?"""
        common = self.parts(other)
        if common == len(other) or common == len(self):
            return len(self) > len(other)
        return self.links[common] < other.links[common]

    def more(self, root: bytes, entries: Iterable[tuple[int, bytes]], signature: bytes) -> Chain:
        """With further records, and the signature over the last of them."""
        rounds, payloads, links = [*self.rounds], [*self.payloads], [*self.links]
        for round, payload in entries:
            links.append(_link(links[-1] if links else root, round, payload))
            rounds.append(round)
            payloads.append(payload)
        return Chain(tuple(rounds), tuple(payloads), tuple(links), signature)

    def first(self, length: int) -> Chain:
        """Its first records, without a signature."""
        return Chain(self.rounds[:length], self.payloads[:length], self.links[:length])


@dataclass(frozen=True)
class Given:
    """A part of one author's chain: its records from ``start`` on, to its end."""

    author: int
    start: int
    entries: tuple[tuple[int, bytes], ...]
    signature: bytes


@dataclass
class SharedLog:
    """All chains of a run, as one peer has them (changes in place).

    ``run``: 32 bytes that name the run: its settings, its first values and who may take part.
    """

    run: bytes
    authors: int
    rounds: int
    verify: Verify
    chains: dict[int, Chain] = field(default_factory=dict)

    def chain(self, author: int) -> Chain:
        return self.chains.get(author, Chain())

    def at_round(self, round: int) -> dict[int, bytes]:
        """What was contributed to a round, by author."""
        found: dict[int, bytes] = {}
        for author in sorted(self.chains):
            chain = self.chains[author]
            if round in chain.rounds:
                found[author] = chain.payloads[chain.rounds.index(round)]
        return found

    @property
    def newest(self) -> int:
        """The last round that anybody contributed to (0: none)."""
        return max((c.rounds[-1] for c in self.chains.values() if len(c)), default=0)

    def append(
        self, author: int, round: int, payload: bytes, sign: Callable[[bytes], bytes]
    ) -> Given:
        """One's own next contribution; returns it as others are given it."""
        before = self.chain(author)
        assert not before.rounds or before.rounds[-1] < round, "rounds only go up"
        longer = before.more(self.run, [(round, payload)], b"")
        signature = sign(self._signed(author, longer))
        self.chains[author] = before.more(self.run, [(round, payload)], signature)
        return Given(author, len(before), ((round, payload),), signature)

    def have(self) -> dict[int, tuple[int, str]]:
        """What there is of every chain."""
        return {a: (len(c), c.at(len(c))) for a, c in sorted(self.chains.items()) if len(c)}

    def missing(self, have: Have) -> list[Given]:
        """What somebody lacks who has this; of a chain that parts from ours all of it. Very much is
        cut short."""
        given: list[Given] = []
        size = 0
        for author, chain in sorted(self.chains.items()):
            if size > MAX_GIVEN // 2:
                break  # the others come with the next exchange
            length, link = have.get(author, (0, ""))
            if length >= len(chain) and (length > len(chain) or link == chain.at(length)):
                continue  # has it, or more of which we cannot tell whether it goes on from ours
            goes_on = chain.at(length) == link
            given.append(self.whole(author, length if goes_on else 0))
            size += sum(len(payload) for _, payload in given[-1].entries)
        return given

    def whole(self, author: int, start: int = 0) -> Given:
        """One author's chain from a record on."""
        chain = self.chain(author)
        entries = tuple(zip(chain.rounds[start:], chain.payloads[start:], strict=True))
        return Given(author, start, entries, chain.signature)

    def take(self, given: Iterable[Given]) -> tuple[list[Given], list[int]]:
        """Join what somebody gave.

        Returns:
            What was new, to be kept on the disk; and the authors of whom our chain, which the giver
            does not have, is the better one.

        Raises:
            ProtocolError: a signature, a round or an author that cannot be.
        """
        new: list[Given] = []
        ours: list[int] = []
        for part in given:
            mine = self.chain(part.author)
            if not 0 <= part.author < self.authors or not part.entries:
                raise ProtocolError(
                    f"a chain of author {part.author}, who is none, or an empty one"
                )
            if part.start > len(mine):
                continue  # it goes on from something that is not here; the next exchange mends it
            theirs = mine.first(part.start).more(self.run, part.entries, part.signature)
            if not self.verify(part.author, self._signed(part.author, theirs), part.signature):
                if part.start:
                    continue  # it goes on from another chain than ours
                raise Foreign(f"a chain of author {part.author} is not signed by it")
            ups = all(a < b for a, b in zip((0, *theirs.rounds), theirs.rounds, strict=False))
            if not ups or theirs.rounds[-1] > self.rounds:
                raise ProtocolError(f"author {part.author}: rounds that the run does not have")
            if theirs.better(mine):
                self.chains[part.author] = theirs
                new.append(part)
            elif mine.parts(theirs) < len(theirs):
                ours.append(part.author)
        return new, ours

    def _signed(self, author: int, chain: Chain) -> bytes:
        tail = struct.pack("<II", author, len(chain)) + chain.links[-1]
        return b"forefed-chain-1" + self.run + tail


def _link(before: bytes, round: int, payload: bytes) -> bytes:
    head = struct.pack("<I", round)
    return hashlib.sha256(b"forefed-link-1" + before + head + payload).digest()


def encode_given(run: bytes, given: Sequence[Given]) -> bytes:
    """Parts of chains as one message (kind "given"), compressed: records of one author differ
    little but in their codes.

        meta {"run": hex, "a": [[author, start, records], ...]}
        body zlib of, for each part: signature | records of (round u32 | length u32 | payload)
    """
    plain = bytearray()
    for part in given:
        plain += part.signature
        for round, payload in part.entries:
            plain += _ENTRY.pack(round, len(payload)) + payload
    about = [[p.author, p.start, len(p.entries)] for p in given]
    return pack("given", {"run": run.hex(), "a": about}, zlib.compress(bytes(plain), 9))


def decode_given(data: bytes | memoryview, run: bytes) -> list[Given]:
    """The inverse.

    Raises:
        ProtocolError: damaged, of another run, or more than there may be.
    """
    meta, body = unpack(data, "given", LIMITS)
    of_run(meta, run)
    packed = zlib.decompressobj()
    try:
        plain = packed.decompress(bytes(body), MAX_GIVEN)
    except zlib.error as error:
        raise ProtocolError(f"the records cannot be unpacked: {error}") from None
    if packed.unconsumed_tail or not packed.eof or packed.unused_data:
        raise ProtocolError("more records than one message may have, or cut ones")
    place, found = 0, []

    def read(count: int) -> bytes:
        nonlocal place
        if place + count > len(plain):
            raise ProtocolError("the records are cut")
        place += count
        return plain[place - count : place]

    for author, start, count in numbers(meta.get("a"), 3):
        signature, entries = read(SIGNATURE), []
        for _ in range(count):
            round, length = _ENTRY.unpack(read(_ENTRY.size))
            if length > MAX_RECORD:
                raise ProtocolError(f"a record of {length} bytes, at most {MAX_RECORD}")
            entries.append((round, read(length)))
        found.append(Given(author, start, tuple(entries), signature))
    if place != len(plain):
        raise ProtocolError("bytes behind the last record")
    return found


def encode_have(run: bytes, have: Have, done: bool) -> bytes:
    """What a peer has (kind "have"); ``done``: it contributes no more."""
    rows = [[author, length, link] for author, (length, link) in sorted(have.items())]
    return pack("have", {"run": run.hex(), "have": rows, "done": done})


def decode_have(data: bytes | memoryview, run: bytes) -> tuple[dict[int, tuple[int, str]], bool]:
    """The inverse.

    Raises:
        ProtocolError: damaged, of another run, or of another form.
    """
    meta, _ = unpack(data, "have", LIMITS)
    of_run(meta, run)
    rows, done = meta.get("have"), meta.get("done")
    if not isinstance(rows, list) or type(done) is not bool:
        raise ProtocolError("what a peer has is no table")
    if any(not isinstance(row, list) or len(row) != 3 for row in rows):
        raise ProtocolError("what a peer has of a chain: author, records, last link")
    counts = numbers([row[:2] for row in rows], 2)
    if any(not isinstance(row[2], str) or len(row[2]) != 64 for row in rows):
        raise ProtocolError("a link is no 32 bytes in hex")
    return {a: (n, row[2]) for (a, n), row in zip(counts, rows, strict=True)}, done


def of_run(meta: Mapping[str, object], run: bytes) -> None:
    """Raises Foreign: a message of another run."""
    if meta.get("run") != run.hex():
        raise Foreign(
            "a message of another run: its settings, its first values or its peers are others"
        )


def numbers(rows: object, width: int) -> list[list[int]]:
    """Rows of so many whole numbers, none below zero; raises ProtocolError for anything else."""
    if isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == width
        and all(type(x) is int and 0 <= x < 2**31 for x in row)
        for row in rows
    ):
        return rows
    raise ProtocolError("a table of numbers was expected")


def exchange(
    a: SharedLog, b: SharedLog, carry: Callable[[bytes], bytes | None] = lambda m: m
) -> bool:
    """One meeting of two peers, as it goes over the network (deploy/peer_talk.py), in this process;
    ``carry`` may lose a message. Returns whether it came to its end."""
    asked = carry(encode_have(a.run, a.have(), False))
    if asked is None:
        return False
    have, _ = decode_have(asked, b.run)
    reply, there = (
        carry(encode_given(b.run, b.missing(have))),
        carry(encode_have(b.run, b.have(), False)),
    )
    if reply is None or there is None:
        return False
    _, better = a.take(decode_given(reply, a.run))
    lacks = a.missing(decode_have(there, a.run)[0])
    lacks += [a.whole(x) for x in better if x not in {p.author for p in lacks}]
    offered = carry(encode_given(a.run, lacks))
    if offered is None:
        return False
    _, better = b.take(decode_given(offered, b.run))
    back = carry(encode_given(b.run, [b.whole(x) for x in better]))
    if back is None:
        return False
    a.take(decode_given(back, a.run))
    return True
