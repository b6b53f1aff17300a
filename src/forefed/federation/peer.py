"""A peer of a federation without a server: parameters as a function of the shared log.

Ours (log gossip). Peers exchange what they contributed (chains.py), and everybody does what a
server would do with it: the state after round r is the server's step (server.py) on the state
after round r - 1 and what the log has of round r, in the order of the authors. So peers with equal
logs hold equal bits, whatever the graph, the order of exchange and the losses; a latecomer needs
the first values, which it draws or downloads as everybody did, and the log.

A contribution that comes late (a partition of the network heals) changes the rounds from its own
on: they are done again from a kept state. It was computed on what its author had then, as the
delayed gradients of asynchronous training are. Nobody waits for it, and no peer decides what
counts: there is no vote, no leader and no clock in the result.

Reduction: with everybody heard in every round, a peer's state is a star's, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from forefed.core.errors import ProtocolError
from forefed.core.types import Lost, Update
from forefed.federation.chains import SharedLog
from forefed.federation.star import Star
from forefed.federation.state import RunState
from forefed.federation.topology import Central

KEPT_EVERY, KEPT_LAST = 16, 16
"""States that are kept: of every so manieth round, and of the last ones."""


def conflicts(config: Any) -> Iterator[str]:
    """What of a configuration peers cannot do, each as a sentence with its remedy."""
    codec = config.codec
    if not codec.sends_slopes:
        yield (
            f"codec.kind = '{codec.kind}': peers share a log of slopes; set codec.kind = "
            "'one_byte' or 'scalars' (for example strategy = 'spry')"
        )
    if not isinstance(config.topology, Central):
        yield "topology: peers need none, every graph ends with the same bits; leave it out"
    if config.download.by_records:
        yield "download: peers follow by the log in any case; set download.kind = 'dense'"
    if config.channel.kind != "plain":
        yield f"channel.kind = '{config.channel.kind}' sums at a server; set channel.kind = 'plain'"
    if {config.start.kind, config.guard.kind} - {"none", "auto"}:
        yield "start, guard: they ask all clients by a server; set both to 'none'"
    if any(m.private for m in config.modifiers):
        yield "modifiers: differential privacy here is noise of a server; leave it out"
    if config.oversampling:
        yield "oversampling: everybody who was drawn counts; set it to 0"
    if config.select.kind != "uniform":
        yield "select.kind: who is drawn must follow from the public key; set it to 'uniform'"


@dataclass(frozen=True)
class Done:
    """One round as it was done: what of the log it stands for, the state after it, who counted and
    whose contribution answers no order, its record (wire/records.py), and the training loss and
    forward-equivalents as they were told."""

    key: bytes
    state: RunState | None
    heard: tuple[int, ...]
    refused: tuple[int, ...]
    record: bytes
    loss: float | None
    forwards: float


@dataclass
class Fold:
    """The state as a function of the log; keeps some states, so that little is done again.

    ``star``: the loop of the run, whose transport has the members 0 to authors - 1 and reaches at
    least the peer's own client. ``first``: the state before round 1. Changes in place.
    """

    star: Star
    first: RunState
    done: list[Done] = field(default_factory=list)
    """By round, from 1 on."""
    steps: int = 0
    """Rounds that were done, again ones included."""

    def state(self, log: SharedLog, round: int) -> RunState:
        """The state after a round, by what the log has of it and of those before it."""
        keys = [_key(log.at_round(r)) for r in range(1, round + 1)]
        same = next(
            (i for i, (d, k) in enumerate(zip(self.done, keys, strict=False)) if d.key != k),
            min(len(self.done), len(keys)),
        )
        while same and self.done[same - 1].state is None:
            same -= 1
        if same < len(keys):
            del self.done[same:]
        state = self.done[same - 1].state if same else self.first
        assert state is not None, "states are looked for until there is one"
        for number in range(same + 1, round + 1):
            done = self.step(state, log.at_round(number), keys[number - 1])
            assert done.state is not None, "it was just made"
            state = done.state
            self.done.append(done)
            self._thin()
        return state

    def step(self, state: RunState, said: Mapping[int, bytes], key: bytes) -> Done:
        """One round of the server's, on what was contributed. What does not answer the round's
        order is left out, by everybody alike."""
        drawn = self.star.drawn(state)
        orders = self.star.plan(state, drawn)
        updates: list[Update] = []
        refused: list[int] = []
        for author, payload in said.items():
            try:
                if author not in orders:
                    raise ProtocolError("it was not drawn")
                updates.append(self.star.server.receive(orders[author], payload))
            except ProtocolError:
                refused.append(author)
        if len(updates) < self.star.cohort_min:
            updates = []
        finished = self.star.server.finish(state, orders, updates, drawn)
        self.steps += 1
        losses = [u.metrics["loss"] for u in updates if "loss" in u.metrics]
        heard = tuple(u.client for u in updates)
        record = self.star.encoded(finished, state)
        loss = sum(losses) / len(losses) if losses else None
        forwards = sum(u.metrics.get("forwards", 0.0) for u in updates)
        return Done(key, finished.state, heard, tuple(refused), record, loss, forwards)

    def asked(self, log: SharedLog, round: int) -> tuple[int, ...]:
        """Who is drawn for a round: the same at every peer, as only the key decides it."""
        return self.star.drawn(RunState(round - 1, self.first.params)).clients

    def contribution(self, log: SharedLog, me: int, round: int) -> bytes | None:
        """What this peer's client answers in a round, from the state that the log gives; None: it
        is not drawn.

        Raises:
            ProtocolError: its client failed.
        """
        state = self.state(log, round - 1)
        order = self.star.plan(state).get(me)
        if order is None:
            return None
        (outcome,) = self.star.transport.exchange([order], None)
        if isinstance(outcome, Lost):
            raise ProtocolError(outcome.detail or outcome.reason)
        return outcome.payload

    def _thin(self) -> None:
        """Forget a state that is neither one of the last ones nor every so manieth."""
        old = len(self.done) - KEPT_LAST - 1
        if old >= 0 and (old + 1) % KEPT_EVERY:
            self.done[old] = replace(self.done[old], state=None)


def _key(said: Mapping[int, bytes]) -> bytes:
    digest = hashlib.sha256()
    for author, payload in said.items():
        digest.update(author.to_bytes(4, "little") + hashlib.sha256(payload).digest())
    return digest.digest()
