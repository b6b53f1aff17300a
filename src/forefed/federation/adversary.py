"""The transport of a simulated attack, around that of the clients in this process.

All clients answer honestly first. Then what the hostile ones send is replaced: decoded, crafted
(``attacks/``) from what the adversary knows, encoded again, so that bytes, checks and losses are
those of any answer. It keeps nothing between rounds: who is hostile and what is drawn follow from
the run's key, what it knows of the model from the first values and the orders. The start's sums of
features are honest (poisoned data are in them, too), other answers what ``attack.answers`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from forefed.aggregate import Aggregator
from forefed.attacks import AttackContext, Hostile
from forefed.attacks.answers import lied
from forefed.attacks.attack import likeness
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Lost, Order, Params, Reply, Unit, Update
from forefed.federation.inprocess import SURPLUS, Around, Carrier
from forefed.wire import Codec
from forefed.wire.message import kind_of, unpack, unpack_tensors
from forefed.wire.questions import encode_answer


@dataclass
class Adversary(Around):
    """A ``Transport`` in which the clients ``who`` send what the attack makes of their answers.

    ``first``: the global parameters of round 1, which every client was sent. ``likeness``: in the
    last round, the cosine of what hostile clients found in their data to the benign mean.
    """

    inner: Carrier
    attack: Hostile
    who: frozenset[int]
    codec: Codec
    aggregator: Aggregator
    units: Sequence[Unit]
    first: Params
    seed: int
    likeness: float | None = None

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.tell``."""
        for outcome in self.inner.tell(messages, round, deadline_s):
            if isinstance(outcome, Reply) and outcome.client in self.who:
                yield replace(outcome, payload=self.answer(outcome.payload))
            else:
                yield outcome

    def answer(self, payload: bytes) -> bytes:
        """What a hostile client says in the place of this."""
        attack = self.attack
        if attack.answers == "honest" or kind_of(payload) != "answer":
            return payload
        meta, body = unpack(payload, "answer")
        kind, about = str(meta["k"]), str(meta["of"])
        told = lied(kind, unpack_tensors(body), attack.answers, attack.claims)
        return encode_answer(kind, about, told)

    def exchange(
        self,
        orders: Iterable[Order],
        deadline_s: float | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reply | Lost]:
        """As ``Transport.exchange``; all have answered before the first outcome comes."""
        asked = {order.client: order for order in orders}
        outcomes = list(self.inner.exchange(asked.values(), deadline_s))
        sent = self.crafted(asked, outcomes)
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                payload = sent.get(outcome.client, outcome.payload)
                outcome = replace(outcome, payload=payload)
                if enough():
                    at = outcome.round, outcome.client
                    yield Lost(*at, "deadline", SURPLUS, outcome.bytes_down)
                    continue
            yield outcome

    def crafted(
        self, asked: dict[int, Order], outcomes: Sequence[Reply | Lost]
    ) -> dict[int, bytes]:
        """What the hostile clients send, by client."""
        updates: dict[int, Update] = {}
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                try:
                    order = asked[outcome.client]
                    updates[outcome.client] = self.codec.decode(outcome.payload, order)
                except ProtocolError:
                    continue  # the server will refuse it, too; nothing to learn from it
        if not updates:
            self.likeness = None
            return {}
        order = next(iter(asked.values()))
        assigned = {c: o.assigned for c, o in asked.items()}
        return {
            u.client: self.codec.encode(u, ClientContext(order=asked[u.client]))
            for u in self.lies(updates, order.round, order.params, assigned)
        }

    def lies(
        self,
        updates: Mapping[int, Update],
        round: int,
        params: Params,
        assigned: Mapping[int, tuple[str, ...]],
    ) -> list[Update]:
        """What the hostile ones among ``updates`` make of theirs, and of all others.

        Args:
            params: those that all updates are counted from.
            assigned: what each client trains.
        """
        present = [updates[c] for c in sorted(updates)]
        # who has no example has nothing to hide behind, and the server does not count it
        own = [u for u in present if u.client in self.who and u.n_examples > 0]
        honest = [u for u in present if u.client not in self.who and u.n_examples > 0]
        self.likeness = likeness(honest, own)
        if not own:
            return []
        ctx = AttackContext(
            round=round,
            key=Key(self.seed),
            aggregator=self.aggregator,
            units=self.units,
            params=params,
            first=self.first,
            assigned=dict(assigned),
        )
        return self.attack.craft(honest, own, ctx)
