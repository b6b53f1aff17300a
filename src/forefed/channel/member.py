"""A client's half of a secure sum.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning"
(CCS 2017), Figure 4 without the signatures of its active variant; neighbours as in Bell et al.
(CCS 2020). What a client sends in each phase:

    keys     two public keys: one to seal shares, one to agree on masks
    shares   to each neighbour, sealed: a share of the seed of its own mask, and one of its mask key
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
from forefed.channel.graph import threshold_of
from forefed.channel.masks import PUBLIC_BYTES, KeyPair, add_mask, derive, seal, unseal
from forefed.channel.shamir import PRIME, SHARE_BYTES, split
from forefed.channel.words import Words
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret

MIN_GROUP = 5
"""Of the product: in a smaller group the sum says too much of its members."""


@dataclass(frozen=True, repr=False)
class Member:
    """One client in one round's sum.

    ``session`` names the sum (drawn by the server for every attempt); ``keys`` are the neighbours'
    public keys, ``shares`` what they have sent, ``sent`` a digest of the words that left masked and
    ``unmasked`` the survivors for whom shares were told.
    """

    client: int
    session: bytes
    seed: Secret
    min_group: int = MIN_GROUP
    keys: Mapping[int, bytes] = field(default_factory=dict)
    shares: Mapping[int, bytes] = field(default_factory=dict)
    sent: str = ""
    unmasked: tuple[int, ...] | None = None

    def public(self) -> bytes:
        """Phase "keys"."""
        return self._sealing().public + mask_pair(self._numbers()[1], self.session).public

    def share(self, keys: Mapping[int, bytes], group: int) -> tuple[dict[int, bytes], Member]:
        """Phase "shares": what goes to each neighbour.

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
        own, key = self._dealt(len(keys) + 1)
        pair = self._sealing()
        sealed = {
            other: seal(self._letter(pair, self.client, other, public), own[place] + key[place])
            for other, public in keys.items()
            for place in (place_of(other, self.client, keys) - 1,)
        }
        return sealed, replace(self, keys=dict(keys))

    def mask(self, words: Words, shares: Mapping[int, bytes], group: int) -> tuple[Words, Member]:
        """Phase "train": the words with all masks.

        Args:
            shares: sealed, by neighbour: whoever sent none takes no part.
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
        pair = self._sealing()
        opened = {
            other: unseal(self._letter(pair, other, self.client, self.keys[other]), x)
            for other, x in shares.items()
        }
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
        own, _ = self._dealt(len(self.keys) + 1)
        told = {
            other: x[:SHARE_BYTES] if other in alive else x[SHARE_BYTES:]
            for other, x in self.shares.items()
        }
        told[self.client] = own[place_of(self.client, self.client, self.keys) - 1]
        return b"".join(told[c] for c in sorted(told)), replace(self, unmasked=alive)

    def _enough(self, group: int, there: int) -> None:
        least = max(self.min_group, threshold_of(len(self.keys) + 1))
        if there < least or group < there:
            raise TooFew(f"{there} clients are left of a sum that needs {least}")

    def _numbers(self) -> tuple[int, int]:
        """The seeds of its own mask and of its mask key."""
        own, key = (self.seed.fold("secure sum", x).value % PRIME for x in ("own", "key"))
        return own, key

    def _dealt(self, holders: int) -> tuple[list[bytes], list[bytes]]:
        """Shares of both seeds, by place."""
        return tuple(  # type: ignore[return-value]
            [
                y.to_bytes(SHARE_BYTES, "little")
                for y in split(secret, self._coefficients(name, holders), holders)
            ]
            for name, secret in zip(("own", "key"), self._numbers(), strict=True)
        )

    def _coefficients(self, name: str, holders: int) -> list[int]:
        count = threshold_of(holders) - 1
        drawn = hashlib.shake_256(self.seed.fold("secure sum", "shares of", name).bytes)
        data = drawn.digest(SHARE_BYTES * count)  # modulo the prime: a bias of 2^-120
        return [
            int.from_bytes(data[i : i + SHARE_BYTES], "little") % PRIME
            for i in range(0, len(data), SHARE_BYTES)
        ]

    def _sealing(self) -> KeyPair:
        seed = self.seed.fold("secure sum", "sealing").bytes
        return KeyPair.of(seed, self.session, b"forefed sealing key 1")

    def _letter(self, pair: KeyPair, sender: int, receiver: int, public: bytes) -> bytes:
        """The key of what one neighbour sends the other: of one text."""
        info = b"forefed share 1" + _ids(sender, receiver)
        return derive(pair.agree(public[:PUBLIC_BYTES]), self.session, info)

    def dump(self) -> bytes:
        """As a client keeps it between two phases; secret."""
        return json.dumps(
            {
                "client": self.client,
                "session": self.session.hex(),
                "seed": self.seed.bytes.hex(),
                "min_group": self.min_group,
                "keys": {str(c): x.hex() for c, x in self.keys.items()},
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
            {int(c): bytes.fromhex(x) for c, x in kept["shares"].items()},
            kept["sent"],
            None if kept["unmasked"] is None else tuple(kept["unmasked"]),
        )


def place_of(holder: int, owner: int, neighbours: Collection[int]) -> int:
    """The place, from 1 on, of a holder: by number among all that hold shares of this owner."""
    return 1 + sum(c < holder for c in {*neighbours, owner})


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


def _ids(*clients: int) -> bytes:
    return b"".join(c.to_bytes(8, "little") for c in clients)
