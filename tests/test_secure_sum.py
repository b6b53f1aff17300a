"""The secure sum alone: exact, uniform masks, drop-outs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

pytest.importorskip("cryptography")

from forefed.channel.fixed_point import FixedPoint, Words
from forefed.channel.graph import at_least, degree, neighbours, threshold_of
from forefed.channel.masks import add_mask, seal, unseal
from forefed.channel.secure_sum_client import Member, own_mask, pair_mask
from forefed.channel.secure_sum_server import SEALED_BYTES, Abandoned, MaskedSum
from forefed.channel.shamir import PRIME, combine, extend
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key, Secret

SESSION = b"12345678"


@dataclass
class Play:
    """A sum of n clients of m words; everybody honest unless a test meddles."""

    n: int
    m: int = 40
    k: int | None = None
    session: bytes = SESSION
    seed: int = 1
    members: dict[int, Member] = field(default_factory=dict)
    words: dict[int, Words] = field(default_factory=dict)
    group: MaskedSum = field(init=False)
    back: Mapping[int, Mapping[int, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        secret = Secret.rehearsed(self.seed)
        self.group = MaskedSum(self.session, Key(7), Words.zero(self.m, 2, 32), neighbours=self.k)
        drawn = np.random.default_rng(self.seed)
        for c in range(self.n):
            self.members[c] = Member(c, self.session, secret.fold(c))
            values = drawn.integers(0, 2**32, self.m, dtype=np.uint32)
            self.words[c] = Words(values, np.array([c, 2**40 + c], dtype=np.uint64))

    def begin(self, silent: Collection[int] = ()) -> None:
        keys = self.group.take_keys({c: x.public() for c, x in self.members.items()})
        sealed = {}
        for c in self.members.keys() - set(silent):
            out, self.members[c] = self.members[c].share(keys[c], len(keys))
            sealed[c] = b"".join(out[o] for o in sorted(out))
        self.back = self.group.take_shares(sealed)

    def masked(self, client: int) -> Words:
        told, self.members[client] = self.members[client].mask(
            self.words[client], self.back[client], len(self.back)
        )
        return told

    def train(self, dropped: Collection[int] = ()) -> None:
        for c in self.back.keys() - set(dropped):
            self.group.take_words(c, self.masked(c).to_bytes())

    def finish(self, silent: Collection[int] = ()) -> Words:
        alive = self.group.survivors()
        told = {}
        for c in alive.keys() - set(silent):
            told[c], self.members[c] = self.members[c].unmask(alive[c], len(alive))
        return self.group.open(told)

    def plain(self, clients: Collection[int]) -> Words:
        total = Words.zero(self.m, 2, 32)
        for c in clients:
            total.add(self.words[c])
        return total


def same(one: Words, other: Words) -> bool:
    return bool((one.values == other.values).all() and (one.about == other.about).all())


@pytest.mark.parametrize(("n", "k"), [(5, None), (100, None), (40, 39)])
def test_the_sum_is_that_of_the_words(n: int, k: int | None) -> None:
    play = Play(n, k=k)
    play.begin()
    play.train()
    assert same(play.finish(), play.plain(range(n)))


def test_whoever_drops_out_is_left_out_of_the_sum() -> None:
    play = Play(12)
    play.begin(silent={3})  # never shared: as if not invited
    play.train(dropped={5, 8})
    assert same(play.finish(silent={0}), play.plain(set(range(12)) - {3, 5, 8}))


def test_in_a_sparse_graph_too() -> None:
    play = Play(60, k=14)
    play.begin(silent={3})
    play.train(dropped={5, 18})
    assert same(play.finish(), play.plain(set(range(60)) - {3, 5, 18}))
    assert {len(x) for x in play.group.graph.values()} == {14}


def test_below_the_threshold_the_sum_is_abandoned_and_tells_nothing() -> None:
    play = Play(9)  # six of nine are needed
    play.begin()
    play.train(dropped={0, 1, 2, 3})
    with pytest.raises(Abandoned, match="and 6 are needed"):
        play.finish()
    late = Play(9)
    late.begin()
    late.train()
    with pytest.raises(Abandoned, match="nothing of the sum was learnt"):
        late.finish(silent={0, 1, 2, 3})
    # what the server holds is uniform: no word of the true sum is there
    assert not (late.group.total.values == late.plain(range(9)).values).any()


def test_masked_words_of_all_but_one_are_uniform() -> None:
    play = Play(6, m=40_000)
    for words in play.words.values():
        words.values[:] = 7  # as far from uniform as can be
    play.begin()
    told = [play.masked(c).values for c in range(6)]
    for some in (told[0], sum(told[1:], np.zeros_like(told[0]))):  # alone, and any n - 1 of them
        counts = np.bincount(some.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert 160 < chi < 370  # 255 degrees of freedom: 1e-6 on either side


def test_two_colluding_clients_and_the_server_lack_shares() -> None:
    """What they hold of client 0: two shares of either seed, where four are needed."""
    play = Play(5)
    play.begin()
    play.masked(0), play.masked(1), play.masked(2)
    held = {c: play.members[c].shares[0] for c in (1, 2)}
    own, key = play.members[0]._numbers()
    for secret, part in ((own, slice(0, 16)), (key, slice(16, 32))):
        known = {c + 1: int.from_bytes(x[part], "little") for c, x in held.items()}
        assert combine(known) != secret
    assert threshold_of(5) == 4
    # any secret at all agrees with two shares: one more free number decides it
    guess = {**known, 9: 12345}
    assert combine(guess) != combine({**known, 9: 54321})


def test_a_masked_message_of_another_session_or_a_second_time_is_refused() -> None:
    play = Play(6)
    play.begin()
    first = play.masked(0).to_bytes()
    play.group.take_words(0, first)
    with pytest.raises(ProtocolError, match="heard already"):
        play.group.take_words(0, first)
    with pytest.raises(ProtocolError, match="takes no part"):
        play.group.take_words(77, first)
    with pytest.raises(ProtocolError, match="bytes of words"):
        play.group.take_words(1, first[:-4])
    # in another session the same words leave under other masks
    again = Play(6, session=b"87654321")
    again.begin()
    assert not (again.masked(0).values == Words.of_bytes(first, play.words[0]).values).all()


def test_other_words_under_the_same_masks_are_refused() -> None:
    play = Play(6)
    play.begin()
    first = play.masked(2)
    assert same(play.masked(2), first)  # the same again is no news
    play.words[2].values[0] += 1
    with pytest.raises(ProtocolError, match="other words"):
        play.masked(2)


def test_both_shares_of_one_client_are_never_told() -> None:
    play = Play(6)
    play.begin()
    play.train(dropped={5})
    member = play.members[0]
    told, member = member.unmask((1, 2, 3, 4), 5)
    assert told == member.unmask((1, 2, 3, 4), 5)[0]
    with pytest.raises(ProtocolError, match="for other survivors"):
        member.unmask((1, 2, 3, 5), 5)
    with pytest.raises(ProtocolError, match="took no part"):
        play.members[1].unmask((0, 2, 3, 9), 5)
    with pytest.raises(ProtocolError, match="2 clients are left"):
        play.members[1].unmask((0,), 5)
    with pytest.raises(ProtocolError, match="before anything was sent"):
        play.members[5].unmask((0, 1, 2, 3), 5)


def test_a_small_group_is_refused_by_the_server_and_by_each_client() -> None:
    with pytest.raises(Abandoned, match="4 clients are left of a secure sum that needs 5"):
        Play(4).begin()
    play = Play(5)
    keys = {c: x.public() for c, x in play.members.items() if c}
    with pytest.raises(ProtocolError, match="a sum of 4 clients, at least 5 here"):
        play.members[0].share({c: keys[c] for c in (1, 2, 3)}, 5)
    with pytest.raises(ProtocolError, match="stands twice"):
        play.members[0].share({**keys, 4: keys[3]}, 5)
    with pytest.raises(ProtocolError, match="is none"):
        play.members[0].share({**keys, 4: bytes(64)}, 5)  # a point of small order
    _, begun = play.members[0].share(keys, 5)
    other = replace(play.members[4], seed=Secret.rehearsed(99)).public()
    with pytest.raises(ProtocolError, match="has begun"):
        begun.share({**keys, 4: other}, 5)


def test_a_client_with_keys_that_are_none_or_anothers_is_left_out() -> None:
    play = Play(8)
    keys = {c: x.public() for c, x in play.members.items()}
    keys |= {5: bytes(64), 6: keys[7], 4: keys[4][:-1]}
    with pytest.raises(Abandoned, match="4 clients are left"):
        play.group.take_keys(keys)
    assert set(play.group.take_keys(keys | {4: play.members[4].public()})) == {0, 1, 2, 3, 4}
    # copies are both left out, as nobody can tell which is which


def test_shares_that_were_changed_on_their_way_are_refused() -> None:
    play = Play(6)
    play.begin()
    back = dict(play.back[5])
    back[1] = back[1][:-1] + bytes([back[1][-1] ^ 1])
    with pytest.raises(ProtocolError, match="changed on its way"):
        play.members[5].mask(play.words[5], back, 6)
    with pytest.raises(ProtocolError, match="changed on its way"):  # what 2 sent for 5
        play.members[4].mask(play.words[4], {**play.back[4], 2: play.back[5][2]}, 6)
    assert {len(x) for x in play.back[5].values()} == {SEALED_BYTES}
    assert unseal(bytes(32), seal(bytes(32), b"x")) == b"x"


def test_a_wrong_share_of_a_dropped_client_is_noticed() -> None:
    play = Play(6)
    play.begin()
    play.train(dropped={5})
    alive = play.group.survivors()
    told = {c: play.members[c].unmask(alive[c], 5)[0] for c in alive}
    told[0] = told[0][:-16] + bytes(16)  # its share of client 5, the last one
    with pytest.raises(ProtocolError, match="do not give its key"):
        play.group.open(told)


def test_a_member_survives_being_written_down() -> None:
    play = Play(6)
    play.begin()
    play.train(dropped={4})
    for c, member in play.members.items():
        play.members[c] = Member.load(member.dump())
        assert play.members[c] == member
    assert same(play.finish(), play.plain({0, 1, 2, 3, 5}))
    assert "seed" in json.loads(play.members[0].dump()) and "seed" not in repr(play.members[0])


def test_masks_follow_from_secrets_and_the_session() -> None:
    a, b = (Member(c, SESSION, Secret.rehearsed(c)) for c in (3, 4))
    from forefed.channel.secure_sum_client import mask_pair

    pairs = [mask_pair(m._numbers()[1], SESSION) for m in (a, b)]
    one = pair_mask(pairs[0], pairs[1].public, SESSION, 3, 4)
    assert one == pair_mask(pairs[1], pairs[0].public, SESSION, 4, 3)
    assert one != pair_mask(pairs[0], pairs[1].public, SESSION, 3, 5)
    assert own_mask(5, SESSION) != own_mask(5, b"87654321")
    words = Words.zero(200_003, 3, 64)
    add_mask(words, one, 1)
    assert words.values.any() and words.about.all()
    add_mask(words, one, -1)
    assert not words.values.any() and not words.about.any()


def test_shamir() -> None:
    # 5 + 3 x + 2 x^2 at 1, 2, 3, 4
    assert extend(5, [10, 19], 4) == [32, 49]
    assert combine({1: 10, 2: 19, 3: 32}) == combine({2: 19, 3: 32, 4: 49}) == 5
    secret, first = 2**127 + 12345, [PRIME - 1, 2**100, 77]
    shares = dict(enumerate([*first, *extend(secret, first, 9)], 1))
    assert combine({i: shares[i] for i in (2, 5, 6, 9)}) == secret
    assert combine({i: shares[i] for i in (2, 5, 6)}) != secret
    for base in (2, 3, 5, 7, 11, 13):  # Fermat: the modulus is a prime
        assert pow(base, PRIME - 1, PRIME) == 1


def test_shares_that_both_know_are_not_sent() -> None:
    play = Play(9)  # six give a secret: the first five follow from what two clients know
    play.begin()
    for owner in range(9):
        sealed = [c for c in range(9) if c != owner and play.back[c][owner]]
        assert sealed == [c for c in (5, 6, 7, 8) if c != owner]
    play.train()
    assert len({x for m in play.members.values() for x in m.shares.values()}) == 9 * 8


def test_chances_of_a_sparse_graph() -> None:
    # of 3 drawn from 5 with 2 marked, 2 are: C(2,2) C(3,1) / C(5,3)
    assert at_least(2, 5, 2, 3) == pytest.approx(3 / 10)
    assert degree(32, 0.1, 0.05) == 31
    assert degree(100, 0.1, 0.05) == 16
    assert degree(1000, 0.1, 0.05) == 32
    assert degree(1000, 1 / 3, 0.05) > 100
    graph = neighbours(range(41), 12, Key(3))
    assert all(len(set(x)) == 12 and c not in x for c, x in graph.items())
    assert all(c in graph[o] for c, x in graph.items() for o in x)
    assert graph != neighbours(range(41), 12, Key(4))


def test_fixed_point_bounds_fit_the_weights() -> None:
    point = FixedPoint.fitting(clients=100, clip=10, largest=1, bits=32)
    assert point.fraction == 21 and point.fits(100) and not point.fits(250)
    heavy = FixedPoint.fitting(clients=100, clip=10, largest=512, bits=32)
    assert heavy.fraction == 12 and heavy.fits(100)
    x = np.array([0.25, -3.0, 9.9], dtype=np.float32)
    words, clipped = point.encode(x, 1)
    assert not clipped and np.abs(point.decode(words) - x).max() <= 2.0**-22
    # clipped before the weight, direction kept: a heavy client has the same bound as a light one
    far, clipped = heavy.encode(np.array([40.0, -20.0]), 512)
    assert clipped and heavy.decode(far).tolist() == [5120.0, -2560.0]
    total = np.zeros(2, np.uint32)
    for _ in range(100):
        total += far
    assert heavy.decode(total).tolist() == [512_000.0, -256_000.0]  # no overflow at the bound
    for bad in (np.array([np.nan]), np.array([np.inf])):
        with pytest.raises(ProtocolError, match="not finite"):
            point.encode(bad, 1)
    with pytest.raises(ProtocolError, match="a weight of 2"):
        point.encode(x, 2)


def test_the_error_of_a_sum_is_at_most_half_a_unit_a_client() -> None:
    point = FixedPoint.fitting(clients=100, clip=10, largest=1, bits=32)
    drawn = np.random.default_rng(0).uniform(-10, 10, (100, 50))
    total = np.zeros(50, np.uint32)
    for x in drawn:
        total += point.encode(x, 1)[0]
    error = np.abs(point.decode(total) - drawn.sum(0)).max()
    assert 0 < error <= 100 * 2.0 ** -(point.fraction + 1)
