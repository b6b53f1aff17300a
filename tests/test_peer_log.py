"""Log gossip: chains join in any order, peers end with equal bits; a star is the special case."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faults import fault
from forefed.config.config import configure
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.federation.chains import (
    Foreign,
    SharedLog,
    decode_given,
    decode_have,
    encode_given,
    encode_have,
    exchange,
)
from forefed.federation.peer import Fold
from forefed.federation.star import RunState, Star
from forefed.run.simulate import star_over

RUN = bytes(range(32))
N, D = 5, 12


def sealed(author: int, data: bytes) -> bytes:
    """A signature for tests: whoever knows the author's number can make it."""
    return hashlib.sha512(author.to_bytes(2, "little") + data).digest()


def log_of(rounds: int = 50, authors: int = N) -> SharedLog:
    return SharedLog(RUN, authors, rounds, lambda a, data, s: s == sealed(a, data))


def said(log: SharedLog, author: int, round: int, payload: bytes) -> None:
    log.append(author, round, payload, lambda data: sealed(author, data))


def view(log: SharedLog) -> object:
    return {a: (c.rounds, c.payloads, c.links, c.signature) for a, c in log.chains.items()}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whoever_hears_of_everything_has_the_same_log(data: st.DataObject) -> None:
    """Random graphs, meetings, losses in the middle of a meeting, two-faced authors: once everybody
    could reach everybody, all have the same."""
    peers = [log_of() for _ in range(N)]
    for step in range(data.draw(st.integers(1, 25))):
        kind = data.draw(st.sampled_from(["say", "meet", "meet", "lie"]))
        i, j = data.draw(st.integers(0, N - 1)), data.draw(st.integers(0, N - 1))
        if kind == "meet" and i != j:
            left = data.draw(st.integers(0, 4))

            def carry(message: bytes) -> bytes | None:
                nonlocal left
                left -= 1
                return message if left >= 0 else None

            exchange(peers[i], peers[j], carry)
        elif kind == "say" or i == j:
            own = peers[i].chain(i)
            said(peers[i], i, (own.rounds[-1] if own.rounds else 0) + 1, bytes([step]))
        else:  # j speaks as itself in i's copy: two stories of one author
            other = peers[i].chain(j)
            said(peers[i], j, (other.rounds[-1] if other.rounds else 0) + 1, bytes([step, 1]))
    tree = [(i, data.draw(st.integers(0, i - 1))) for i in range(1, N)]
    for _ in range(2 * N):
        for i, j in data.draw(st.permutations(tree)):
            assert exchange(peers[i], peers[j])
    assert all(view(p) == view(peers[0]) for p in peers)


def test_joining_is_the_same_in_any_order_and_twice() -> None:
    """Two stories of author 0 that part at its second record, a longer and a shorter one."""
    logs = []
    for story in (b"aa", b"bbbb"):
        log = log_of()
        said(log, 0, 1, b"x")
        for i, letter in enumerate(story):
            said(log, 0, 2 + i, bytes([letter]))
        logs.append(log)
    results = []
    for order in ((0, 1), (1, 0), (0, 1, 0, 1)):
        mine = log_of()
        for k in order:
            mine.take(logs[k].missing({}))
        results.append(view(mine))
    assert results[0] == results[1] == results[2]


@fault(
    "peer: a chain that its author did not sign, or with rounds that the run has not",
    "any time",
    "refused; nothing of it is kept or handed on",
)
def test_what_is_not_signed_by_its_author_is_refused() -> None:
    log, mine = log_of(), log_of()
    said(log, 2, 1, b"true")
    (part,) = log.missing({})
    for wrong in (
        type(part)(2, 0, ((1, b"false"),), part.signature),
        type(part)(2, 0, ((2, b"true"),), part.signature),
        type(part)(1, 0, part.entries, part.signature),
    ):
        with pytest.raises(Foreign, match="not signed"):
            mine.take([wrong])
    for rounds in ((2, 1), (51,), (0,)):
        other = log_of()
        chain = other.chain(3).more(RUN, [(r, b"") for r in rounds], b"")
        signature = sealed(3, other._signed(3, chain))
        with pytest.raises(ProtocolError, match="rounds that the run"):
            mine.take([type(part)(3, 0, tuple((r, b"") for r in rounds), signature)])
    assert not mine.chains
    assert mine.take([part])[0] == [part] and mine.take([part]) == ([], [])  # a replay is nothing


@fault("peer: a message of another run, or with one bit flipped", "any time", "refused")
def test_messages_of_another_run_or_form_are_refused() -> None:
    log = log_of()
    said(log, 0, 1, b"payload" * 50)
    given, have = encode_given(RUN, log.missing({})), encode_have(RUN, log.have(), True)
    assert decode_given(given, RUN) == log.missing({})
    assert decode_have(have, RUN) == (log.have(), True)
    assert len(given) < 250, "compressed"
    for decode, data in ((decode_given, given), (decode_have, have)):
        with pytest.raises(Foreign, match="another run"):
            decode(data, bytes(32))
        for place in range(0, len(data), 7):
            broken = bytearray(data)
            broken[place] ^= 4
            with pytest.raises(ProtocolError):
                decode(bytes(broken), RUN)


# ------------------------------------------------------------------ peers that train


def bowl(params: Params, batch: dict[str, Tensor]) -> Tensor:
    return ((params["w"] - batch["y"]) ** 2).sum(1).mean() / 2


TRAINING = {
    "strategy": "fedavg",
    "codec": "one_byte",
    "engine": {"kind": "forward", "emulate": False},
    "directions": {"k": 4},
    "client": {"batch_size": "all", "optimiser": {"kind": "sgd", "lr": 0.05}},
    "server": {"kind": "adam", "lr": 0.1},
}


@cache
def star(rounds: int = 50, **more: object) -> Star:
    config = configure(
        base={
            **{"rounds": rounds, "cohort": N, "seed": 3, **TRAINING},
            **{"partition": {"kind": "iid", "clients": N}, "start": "none", "guard": "none"},
            **more,
        }
    )
    clients = [{"y": 1 + Key(9).fold(c).normal((4, D)) / 4} for c in range(N)]
    return star_over(config, bowl, {"w": torch.zeros(D)}, clients)


FIRST = RunState(0, {"w": torch.zeros(D)})


def without_secret(star: Star) -> Star:
    return replace(star, server=replace(star.server, secret=None))


@dataclass
class Peer:
    me: int
    log: SharedLog = field(default_factory=log_of)
    fold: Fold = field(default_factory=lambda: Fold(without_secret(star()), FIRST))

    def train(self, round: int) -> None:
        payload = self.fold.contribution(self.log, self.me, round)
        assert payload is not None
        said(self.log, self.me, round, payload)

    def digest(self, round: int) -> str:
        return trees.digest(self.fold.state(self.log, round).params)


def met(peers: list[Peer]) -> None:
    for a in peers:
        for b in peers:
            if a is not b:
                exchange(a.log, b.log)


def test_peers_that_all_hear_each_other_are_a_star() -> None:
    peers = [Peer(c) for c in range(N)]
    state = FIRST
    for round in range(1, 5):
        for peer in peers:
            peer.train(round)
        met(peers)
        state, _ = star().round(state)
        assert {p.digest(round) for p in peers} == {trees.digest(state.params)}
    assert all(p.fold.steps == 4 for p in peers), "nothing was done twice"


@fault(
    "peers leave, the network parts in two, and a peer comes when all is done",
    "rounds 2 to 4 of 5",
    "all end with the same digest, the latecomer from the log alone",
)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_leaves_partitions_and_latecomers_end_with_equal_digests(data: st.DataObject) -> None:
    peers = [Peer(c) for c in range(N)]
    away = data.draw(st.sets(st.integers(0, N - 1), max_size=2))
    side = data.draw(st.sets(st.integers(0, N - 1)))
    for round in range(1, 6):
        there = [p for p in peers if p.me not in away or round > 3]  # leaves and latecomers
        for peer in there:
            peer.train(round)
        for a, b in data.draw(
            st.permutations([(a, b) for a in there for b in there if a is not b])
        ):
            cut = round in (2, 3, 4) and (a.me in side) != (b.me in side)  # the network parts
            if not cut and data.draw(st.booleans()):
                exchange(a.log, b.log)
    met(peers)
    met(peers)
    late = Peer(0)
    exchange(late.log, peers[-1].log)
    assert len({p.digest(5) for p in [*peers, late]}) == 1
    assert late.fold.steps == 5


@fault(
    "peer: a contribution arrives late",
    "one and 38 rounds later",
    "the rounds from it on are done again; equal digests at both",
)
def test_a_late_record_does_again_what_follows_from_it() -> None:
    a, b = Peer(0), Peer(1)
    for round in range(1, 41):
        a.train(round)
    before = a.digest(40)
    b.train(39)
    exchange(a.log, b.log)
    assert a.digest(40) != before
    assert a.fold.steps == 42, "rounds 39 and 40 again"
    c = Peer(1)
    c.train(2)
    assert exchange(c.log, a.log) and a.digest(40) == c.digest(40)
    assert sum(d.state is not None for d in a.fold.done) <= 16 + 40 // 16 + 1


@fault(
    "peer: a contribution that cannot be read, rightly signed",
    "any round",
    "it counts for nobody, at every peer alike; counted",
)
def test_a_garbled_contribution_counts_for_nobody() -> None:
    a, b = Peer(0), Peer(1)
    a.train(1)
    alone = a.digest(1)
    said(a.log, 2, 1, b"FFED nonsense")
    exchange(a.log, b.log)
    assert a.digest(1) == b.digest(1) == alone
    assert a.fold.done[0].refused == b.fold.done[0].refused == (2,), "and is counted"
    assert a.fold.done[0].heard == (0,)


@fault(
    "peer: it joins late",
    "after 200 rounds of five",
    "less than 100 kB bring it up to date, and no model",
)
def test_a_latecomer_needs_kilobytes() -> None:
    """Two hundred rounds of five peers, one byte a slope: what it is given, and not the model."""
    peers = [Peer(c, log_of(200)) for c in range(N)]
    pool = [peers[c].fold.contribution(peers[c].log, c, 1) for c in range(N)]
    for round in range(1, 201):
        for c, payload in enumerate(pool):  # other codes in every round, as they do not compress
            assert payload is not None
            codes = Key(round).fold(c).integers(4, 256).astype("u1").tobytes()
            said(peers[0].log, c, round, payload[:-4] + codes)
    late = log_of(200)
    given = encode_given(RUN, peers[0].log.missing(late.have()))
    late.take(decode_given(given, RUN))
    assert view(late) == view(peers[0].log) and len(given) < 100_000
