"""A client's half of a secure sum.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning"
(CCS 2017), Figure 4 without the signatures of its active variant; neighbours as in Bell et al.
(CCS 2020). What a client sends in each phase:

    keys     two public keys: one to seal shares, one to agree on masks
    shares   to some neighbours, sealed: a share of the seed of its own mask, and one of its mask
             key (the others' follow from what both know)
    train    its words, plus its own mask, plus or minus the masks that it shares with neighbours
    unmask   of each neighbour one share: of its own mask where its words came, of its mask key
             where they did not; never both

A member is a value: each phase takes one and gives the next one. Everything that it keeps secret
follows from its seed, and from nothing that travels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from forefed.channel.channel import TooFew
from forefed.channel.fixed_point import Words
from forefed.channel.graph import threshold_of
from forefed.channel.masks import PUBLIC_BYTES, KeyPair, add_mask, derive, seal, unseal
from forefed.channel.shamir import PRIME, SHARE_BYTES, extend
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret

MIN_GROUP = 5
"""Of the product: in a smaller group the sum says too much of its members."""


@dataclass(frozen=True, repr=False)
class Member:
    """One client in one round's sum.

    ``session`` names the sum (drawn by the server for every attempt); ``keys`` are the neighbours'
    public keys, ``agreed`` what this client and each of them have in common, ``own`` its share of
    its own mask's seed, ``shares`` what neighbours have sent, ``sent`` a digest of the words that
    left masked and ``unmasked`` the survivors for whom shares were told.
    """

    client: int
    session: bytes
    seed: Secret
    min_group: int = MIN_GROUP
    keys: Mapping[int, bytes] = field(default_factory=dict)
    agreed: Mapping[int, bytes] = field(default_factory=dict)
    own: bytes = b""
    shares: Mapping[int, bytes] = field(default_factory=dict)
    sent: str = ""
    unmasked: tuple[int, ...] | None = None

    def public(self) -> bytes:
        """Phase "keys"."""
        return self._sealing().public + mask_pair(self._numbers()[1], self.session).public

    def share(self, keys: Mapping[int, bytes], group: int) -> tuple[dict[int, bytes], Member]:
        """Phase "shares": what goes to the neighbours that are sent a share.

        The first shares of a polynomial are free. So as many as its degree follow from what this
        client and a neighbour both know, and are not sent (``sent_to``).

        Args:
            keys: the neighbours' public keys.
            group: clients in the whole sum.

        Raises:
            TooFew: a group below the minimum.
            ProtocolError: a neighbour named twice or unknown, other keys than before.
        """
        if min(group, len(keys) + 1) < self.min_group:
            raise TooFew(
                f"a sum of {min(group, len(keys) + 1)} clients, at least {self.min_group} here"
            )
        if self.keys and dict(self.keys) != dict(keys):
            raise ProtocolError("other public keys for a sum that has begun")
        if self.client in keys or len({*keys.values(), self.public()}) != len(keys) + 1:
            raise ProtocolError("a client stands twice in the sum")
        if any(len(x) != 2 * PUBLIC_BYTES for x in keys.values()):
            raise ProtocolError("what should be public keys are none")
        pair = self._sealing()
        agreed = {c: pair.agree(public[:PUBLIC_BYTES]) for c, public in keys.items()}
        dealt = self._dealt(agreed)
        sealed = {
            c: seal(self._letters(agreed[c], self.client, c)[0], dealt[c])
            for c in sent_to(self.client, keys)
        }
        own = dealt[self.client][:SHARE_BYTES]
        return sealed, replace(self, keys=dict(keys), agreed=agreed, own=own)

    def mask(self, words: Words, shares: Mapping[int, bytes], group: int) -> tuple[Words, Member]:
        """Phase "train": the words with all masks.

        Args:
            shares: sealed, by neighbour that takes part; empty of one that has sent none here, as
                its share follows from what both know.
            group: clients in the whole sum.

        Raises:
            TooFew: too few are left.
            ProtocolError: shares that were changed, or other words than before.
        """
        self._enough(group, len(shares) + 1)
        if not shares.keys() <= self.keys.keys():
            raise ProtocolError("shares of a client that is no neighbour")
        digest = hashlib.sha256(words.to_bytes())
        for other in sorted(shares):
            digest.update(other.to_bytes(8, "little") + shares[other])
        if self.sent and self.sent != digest.hexdigest():
            # two messages under the same masks: their difference is that of the words
            raise ProtocolError("other words for a sum that has had this client's")
        opened = {}
        for other, x in shares.items():
            letter, known = self._letters(self.agreed[other], other, self.client)
            opened[other] = unseal(letter, x) if x else known
        masked = words.copy()
        seed, secret = self._numbers()
        add_mask(masked, own_mask(seed, self.session), 1)
        mine = mask_pair(secret, self.session)
        for other in sorted(opened):
            public = self.keys[other][PUBLIC_BYTES:]
            key = pair_mask(mine, public, self.session, self.client, other)
            add_mask(masked, key, 1 if other > self.client else -1)
        return masked, replace(self, shares=opened, sent=digest.hexdigest())

    def unmask(self, survivors: Collection[int], group: int) -> tuple[bytes, Member]:
        """Phase "unmask": one share of each neighbour that took part, and of itself, by number.

        Args:
            survivors: neighbours whose words the server has.
            group: clients whose words the server has.

        Raises:
            TooFew: too few are left.
            ProtocolError: strangers, or another set than before: both shares of a client would
                tell its words.
        """
        alive = tuple(sorted(survivors))
        if not self.sent:
            raise ProtocolError("shares were asked for before anything was sent")
        if self.unmasked is not None and self.unmasked != alive:
            raise ProtocolError("shares were told already, for other survivors")
        if not set(alive) <= self.shares.keys() or len(set(alive)) != len(alive):
            raise ProtocolError("survivors that took no part")
        self._enough(group, len(alive) + 1)
        told = {
            other: x[:SHARE_BYTES] if other in alive else x[SHARE_BYTES:]
            for other, x in self.shares.items()
        }
        told[self.client] = self.own
        return b"".join(told[c] for c in sorted(told)), replace(self, unmasked=alive)

    def _enough(self, group: int, there: int) -> None:
        least = max(self.min_group, threshold_of(len(self.keys) + 1))
        if there < least or group < there:
            raise TooFew(f"{there} clients are left of a sum that needs {least}")

    def _numbers(self) -> tuple[int, int]:
        """The seeds of its own mask and of its mask key."""
        own, key = (self.seed.fold("secure sum", x).value % PRIME for x in ("own", "key"))
        return own, key

    def _dealt(self, agreed: Mapping[int, bytes]) -> dict[int, bytes]:
        """The shares of both seeds by holder, this client's own among them."""
        known = {c: self._letters(x, self.client, c)[1] for c, x in agreed.items()}
        mine = derive(self.seed.fold("secure sum", "share").bytes, self.session, b"own share")
        known[self.client] = _reduced(mine)
        holders = sorted(known)
        degree = threshold_of(len(holders)) - 1
        dealt = {c: known[c] for c in holders[:degree]}
        parts = (slice(0, SHARE_BYTES), slice(SHARE_BYTES, None))
        columns = [
            extend(secret, [_number(dealt[c][part]) for c in holders[:degree]], len(holders))
            for secret, part in zip(self._numbers(), parts, strict=True)
        ]
        for c, own, key in zip(holders[degree:], *columns, strict=True):
            dealt[c] = _bytes(own) + _bytes(key)
        return dealt

    def _sealing(self) -> KeyPair:
        seed = self.seed.fold("secure sum", "sealing").bytes
        return KeyPair.of(seed, self.session, b"forefed sealing key 1")

    def _letters(self, agreed: bytes, sender: int, receiver: int) -> tuple[bytes, bytes]:
        """Between two neighbours: the key of what the sender seals for the receiver, of one text;
        and a pair of shares that both know."""
        ids = _ids(sender, receiver)
        letter = derive(agreed, self.session, b"forefed share 1" + ids)
        return letter, _reduced(derive(agreed, self.session, b"forefed known share 1" + ids))

    def dump(self) -> bytes:
        """As a client keeps it between two phases; secret."""
        return json.dumps(
            {
                "client": self.client,
                "session": self.session.hex(),
                "seed": self.seed.bytes.hex(),
                "min_group": self.min_group,
                "keys": {str(c): x.hex() for c, x in self.keys.items()},
                "agreed": {str(c): x.hex() for c, x in self.agreed.items()},
                "own": self.own.hex(),
                "shares": {str(c): x.hex() for c, x in self.shares.items()},
                "sent": self.sent,
                "unmasked": self.unmasked,
            }
        ).encode()

    @staticmethod
    def load(data: bytes) -> Member:
        """The inverse."""
        kept = json.loads(data)
        return Member(
            kept["client"],
            bytes.fromhex(kept["session"]),
            Secret.of_bytes(bytes.fromhex(kept["seed"])),
            kept["min_group"],
            {int(c): bytes.fromhex(x) for c, x in kept["keys"].items()},
            {int(c): bytes.fromhex(x) for c, x in kept["agreed"].items()},
            bytes.fromhex(kept["own"]),
            {int(c): bytes.fromhex(x) for c, x in kept["shares"].items()},
            kept["sent"],
            None if kept["unmasked"] is None else tuple(kept["unmasked"]),
        )


def place_of(holder: int, owner: int, neighbours: Collection[int]) -> int:
    """The place, from 1 on, of a holder: by number among all that hold shares of this owner."""
    return 1 + sum(c < holder for c in {*neighbours, owner})


def sent_to(owner: int, neighbours: Collection[int]) -> list[int]:
    """The neighbours that are sent a share: all but the first ones, whose shares they know."""
    holders = sorted({*neighbours, owner})
    return [c for c in holders[threshold_of(len(holders)) - 1 :] if c != owner]


def own_mask(seed: int, session: bytes) -> bytes:
    """The key of a client's own mask."""
    return derive(seed.to_bytes(SHARE_BYTES, "little"), session, b"forefed own mask 1")


def mask_pair(secret: int, session: bytes) -> KeyPair:
    """The key pair by which a client agrees on masks."""
    return KeyPair.of(secret.to_bytes(SHARE_BYTES, "little"), session, b"forefed mask key 1")


def pair_mask(mine: KeyPair, public: bytes, session: bytes, one: int, other: int) -> bytes:
    """The key of the mask that two clients share; the same for both."""
    info = b"forefed pair mask 1" + _ids(min(one, other), max(one, other))
    return derive(mine.agree(public), session, info)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _bytes(number: int) -> bytes:
    return number.to_bytes(SHARE_BYTES, "little")


def _reduced(data: bytes) -> bytes:
    """Two numbers below the prime (a bias of 2^-120)."""
    halves = data[:SHARE_BYTES], data[SHARE_BYTES:]
    return b"".join(_bytes(_number(half) % PRIME) for half in halves)


def _ids(*clients: int) -> bytes:
    return b"".join(c.to_bytes(8, "little") for c in clients)
