"""The server's half of a round: answers -> (averaged slopes) -> updates -> new state.

A client that keeps up by records calls ``Server.replay`` on what it decoded: the same function as
the server's, so both hold the same bits (DeComFL, arXiv 2405.15861).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forefed.aggregate import Mean, Rule, aggregate
from forefed.collect import Collect, EveryRound
from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.keys import Key, Secret
from forefed.core.types import Json, Order, Params, ServerState, Update
from forefed.memo import Memo, Nothing
from forefed.optimisers import Optimiser
from forefed.run.state import RunState, waiting
from forefed.transforms import Transform
from forefed.wire.records import Entry, RoundRecord

Rebuild = Callable[[Order, Update], Update]
"""Slopes -> ``grad`` and ``last`` (local/replay.py)."""


def _as_it_is(order: Order, update: Update) -> Update:
    return update


@dataclass(frozen=True)
class Finished:
    """What the server made of a round's answers."""

    state: RunState
    record: RoundRecord
    contributions: tuple[Json, ...] = ()
    """Of every answer that counted {client, norm, cosine}: its length, and its angle to the
    aggregate over what it trained (None: nothing moved, or one of them is zero). With shared
    directions both are those of the slopes."""


@dataclass(frozen=True)
class Server:
    """The server's slots.

    ``averages_slopes``: clients share their directions and send slopes, so ``rule`` runs over
    slopes, and what it makes of them is rebuilt once. Exact for plain gradient steps at the
    clients, which are linear in the slopes.
    """

    key: Key
    head: frozenset[str]
    rule: Rule
    optimiser: Optimiser
    transforms: Sequence[Transform] = ()
    rate: Callable[[int], float] = lambda _: 1.0
    """Factor on the optimiser's learning rates in round r (r counts from 1)."""
    memo: Memo = Nothing()  # noqa: RUF009 (frozen)
    collect: Collect = EveryRound()  # noqa: RUF009 (frozen)
    rebuild: Rebuild = _as_it_is
    averages_slopes: bool = False
    secret: Secret | None = None
    """What the server alone draws from (a client that follows by records has none)."""

    def finish(
        self, state: RunState, orders: Mapping[int, Order], updates: Iterable[Update]
    ) -> Finished:
        """The state after a round, and the record from which ``replay`` makes the same."""
        heard = sorted((u for u in updates if u.n_examples > 0), key=lambda u: u.client)
        entries = [
            Entry(u.client, u.n_examples, orders[u.client].assigned, u.slopes)
            for u in heard
            if u.slopes is not None
        ]
        if not self.averages_slopes:
            after, total = self.apply(state, heard)
            record = RoundRecord(state.round + 1, tuple(entries))
            return Finished(after, record, contributions(heard, total))
        rule_state, averaged, along = average_slopes(self.rule, state.rule, entries)
        record = RoundRecord(state.round + 1, tuple(averaged))
        return Finished(self.replay(replace(state, rule=rule_state), record), record, along)

    def replay(self, state: RunState, record: RoundRecord) -> RunState:
        """The state after the round that was recorded.

        Raises:
            ProtocolError: a record of another round, or that does not fit.
        """
        if record.round != state.round + 1 or record.sums:
            raise ProtocolError(f"a record of round {record.round} after round {state.round}")
        updates = []
        for entry in record.entries:
            order = Order(
                self.key.value, record.round, entry.client, entry.assigned, state.params, state.memo
            )
            plain = Update(entry.client, entry.n_examples, None, entry.slopes)
            updates.append(self.rebuild(order, plain))
        return self.apply(state, updates)[0]

    def missed(self, state: RunState, client: int) -> bytes | None:
        """What brings a client up to date that keeps the parameters; None: it needs them."""
        return state.log.missed(client)

    def apply(self, state: RunState, updates: Sequence[Update]) -> tuple[RunState, Params | None]:
        """The server's step, and the aggregate along which it went, once enough has been collected:
        nothing moves that nobody trained."""
        number = state.round + 1
        all_updates = (*state.pending, *updates)
        if not self.collect.enough(all_updates):
            return replace(state, round=number, pending=tuple(map(waiting, all_updates))), None
        rule = Mean(weights=self.rule.weights) if self.averages_slopes else self.rule
        rule_state, change = aggregate(rule, state.rule, all_updates)
        _, last = aggregate(rule, state.rule, [replace(u, grad=u.last) for u in all_updates])
        for transform in reversed(self.transforms):
            change = transform.server(change)
        server_state, params = self.move(state, change)
        memo = self.memo.after(state.memo, change, last)
        after = replace(
            state,
            round=number,
            params=params,
            server=server_state,
            rule=rule_state,
            memo=memo,
            pending=(),
        )
        return after, change

    def move(self, state: RunState, change: Params) -> tuple[ServerState, Params]:
        """The optimiser's state and the parameters after a step along the aggregate."""
        optimiser = self.optimiser.scaled(self.rate(state.round + 1))
        return optimiser.step(state.server, state.params, change, self.head)


def contributions(updates: Iterable[Update], total: Params | None) -> tuple[Json, ...]:
    """{client, norm, cosine} of every update, against the aggregate."""
    told = []
    for update in updates:
        delta = update.grad or {}
        norm = trees.norm(delta)
        cosine = None
        if total is not None:
            along = trees.pick(total, delta)
            length = norm * trees.norm(along)
            cosine = trees.dot(delta, along) / length if length else None
        told.append({"client": update.client, "norm": norm, "cosine": cosine})
    return tuple(told)


def average_slopes(
    rule: Rule, state: ServerState, entries: Sequence[Entry]
) -> tuple[ServerState, list[Entry], tuple[Json, ...]]:
    """One entry out of all that walked along the same directions over the same parameters.

    Slopes along shared directions are those of the mean loss once they are averaged. A client with
    fewer local steps counts with slopes of 0 in the others, as its parameters rested; so does a
    step in which a slope was not finite.
    """
    alike: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        widths = tuple(sorted((group, x.shape[1]) for group, x in entry.slopes.items()))
        alike.setdefault((entry.assigned, widths), []).append(entry)
    averaged = []
    told: list[Json] = []
    for some in alike.values():
        steps = max(len(x) for e in some for x in e.slopes.values())
        slopes = [Update(e.client, e.n_examples, _padded(e.slopes, steps)) for e in some]
        state, mean = aggregate(rule, state, slopes)
        told += contributions(slopes, mean)
        total = sum(e.n_examples for e in some)
        rounded = {group: x.to(torch.float32) for group, x in mean.items()}
        averaged.append(Entry(some[0].client, total, some[0].assigned, rounded))
    return state, averaged, tuple(sorted(told, key=lambda c: c["client"]))


def _padded(slopes: Mapping[str, Tensor], steps: int) -> Params:
    """[steps, K] float64 by group, 0 where there was no step."""
    padded: Params = {}
    for group, x in slopes.items():
        whole = torch.isfinite(x).all(1, keepdim=True)
        rows = torch.where(whole, x, 0.0).double()
        padded[group] = torch.cat([rows, rows.new_zeros(steps - len(x), x.shape[1])])
    return padded
