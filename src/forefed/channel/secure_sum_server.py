"""The server's half of a secure sum: it carries keys and shares, and learns the sum alone.

Each phase takes what clients answered to the last one and gives what goes to each of them next.
Whoever does not answer "shares" takes no part; whoever does not answer "train" is dropped, and its
neighbours' shares take its masks out of the sum. Too few left: the sum is abandoned, and nothing of
it was learnt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from forefed.channel.fixed_point import Words
from forefed.channel.graph import degree, neighbours, threshold_of
from forefed.channel.masks import PUBLIC_BYTES, TAG_BYTES, add_mask, usable
from forefed.channel.secure_sum_client import (
    MIN_GROUP,
    mask_pair,
    own_mask,
    pair_mask,
    place_of,
    sent_to,
)
from forefed.channel.shamir import SHARE_BYTES, combine
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key

SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES


class Abandoned(ProtocolError):
    """Fewer clients are left than the sum needs."""


@dataclass
class MaskedSum:
    """One sum as it goes on. The clients' words are added as they come, so the server holds one
    vector whatever the number of clients."""

    session: bytes
    key: Key
    """Decides who is whose neighbour."""
    total: Words
    min_group: int = MIN_GROUP
    neighbours: int | None = None
    """Of each client; None: as many as ``colluding`` and ``lost`` ask for."""
    colluding: float = 0.1
    lost: float = 0.05
    keys: dict[int, bytes] = field(default_factory=dict)
    graph: dict[int, tuple[int, ...]] = field(default_factory=dict)
    sharing: set[int] = field(default_factory=set)
    """Clients whose neighbours hold their shares."""
    heard: set[int] = field(default_factory=set)
    """Clients whose words are in the total."""

    def take_keys(self, keys: Mapping[int, bytes]) -> dict[int, dict[int, bytes]]:
        """For every client its neighbours' public keys (phase "shares").

        Raises:
            Abandoned: too few.
        """
        times = Counter(keys.values())
        # one that copies another's keys, or sends none, would make its neighbours refuse the sum
        clients = sorted(c for c, x in keys.items() if times[x] == 1 and usable(x))
        self._least(len(clients))
        if self.neighbours is None:
            k = degree(len(clients), self.colluding, self.lost)
            if k * (1 - self.lost) < self.min_group:  # a client counts those that it knows of
                k = len(clients) - 1
        else:
            k = min(self.neighbours, len(clients) - 1)
        self.keys = {c: keys[c] for c in clients}
        self.graph = neighbours(clients, k, self.key)
        return {c: {o: self.keys[o] for o in self.graph[c]} for c in clients}

    def take_shares(self, sealed: Mapping[int, bytes]) -> dict[int, dict[int, bytes]]:
        """For every client what its neighbours have sealed for it, empty where they have sent none
        (phase "train").

        Args:
            sealed: by client, what it has sealed for the neighbours that are sent a share, in
                their order.

        Raises:
            Abandoned: too few.
        """
        cut: dict[int, dict[int, bytes]] = {}
        for c, data in sealed.items():
            receivers = sent_to(c, self.graph[c]) if c in self.graph else []
            if c in self.graph and len(data) == SEALED_BYTES * len(receivers):
                pieces = (data[i : i + SEALED_BYTES] for i in range(0, len(data), SEALED_BYTES))
                cut[c] = dict(zip(receivers, pieces, strict=True))
        self.sharing = set(cut)
        self._least(len(self.sharing))
        return {
            c: {o: cut[o].get(c, b"") for o in self.graph[c] if o in cut}
            for c in sorted(self.sharing)
        }

    def take_words(self, client: int, masked: bytes | memoryview) -> None:
        """Add a client's words.

        Raises:
            ProtocolError: a client that takes no part or was heard, or another number of words.
        """
        if client not in self.sharing:
            raise ProtocolError(f"client {client} takes no part in this sum")
        if client in self.heard:
            raise ProtocolError(f"client {client} was heard already")
        self.total.add(Words.of_bytes(masked, self.total))
        self.heard.add(client)

    def survivors(self) -> dict[int, tuple[int, ...]]:
        """For every client that was heard, which of its neighbours were (phase "unmask").

        Raises:
            Abandoned: too few, in all or around one client.
        """
        self._least(len(self.heard))
        for c in sorted(self.sharing):
            there = len(self.heard & {*self.graph[c], c})
            self._around(there, c)
        return {c: tuple(o for o in self.graph[c] if o in self.heard) for c in sorted(self.heard)}

    def open(self, shares: Mapping[int, bytes]) -> Words:
        """The sum of the words of all that were heard.

        Args:
            shares: answers of phase "unmask": of each neighbour that took part and of itself one
                share, by number.

        Raises:
            Abandoned: too few shares of some client.
            ProtocolError: shares that give another key than the client has told.
        """
        held: dict[int, dict[int, int]] = {c: {} for c in self.sharing}
        for holder in sorted(shares.keys() & self.heard):
            owners = sorted(o for o in (*self.graph[holder], holder) if o in self.sharing)
            data = shares[holder]
            if len(data) != SHARE_BYTES * len(owners):
                continue  # as if it had not answered
            for i, owner in enumerate(owners):
                share = data[SHARE_BYTES * i : SHARE_BYTES * (i + 1)]
                place = place_of(holder, owner, self.graph[owner])
                held[owner][place] = int.from_bytes(share, "little")
        secrets: dict[int, int] = {}
        for owner, found in held.items():
            need = self._around(len(found), owner)
            secrets[owner] = combine(dict(sorted(found.items())[:need]))
        total = self.total.copy()
        for owner in sorted(self.sharing):
            if owner in self.heard:
                add_mask(total, own_mask(secrets[owner], self.session), -1)
                continue
            pair = mask_pair(secrets[owner], self.session)
            if pair.public != self.keys[owner][PUBLIC_BYTES:]:
                raise ProtocolError(f"the shares of client {owner} do not give its key")
            for other in self.graph[owner]:
                if other in self.heard:
                    public = self.keys[other][PUBLIC_BYTES:]
                    mask = pair_mask(pair, public, self.session, owner, other)
                    # the neighbour added it where the dropped client has the higher number
                    add_mask(total, mask, -1 if owner > other else 1)
        return total

    def _least(self, there: int) -> None:
        if there < self.min_group:
            raise Abandoned(
                f"{there} clients are left of a secure sum that needs {self.min_group}; nothing "
                "of it was learnt"
            )

    def _around(self, there: int, owner: int) -> int:
        need = threshold_of(len(self.graph[owner]) + 1)
        if there < need:
            raise Abandoned(
                f"{there} of the clients that hold shares of client {owner} are left, and "
                f"{need} are needed; nothing of the sum was learnt"
            )
        return need
