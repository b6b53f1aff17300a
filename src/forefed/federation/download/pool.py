"""What clients receive are sums of slopes, of which the parameters are made: FedKSeed (arXiv
2312.06353).

All directions of the run come from a pool of P. With plain gradient steps the parameters are then

    w = w0 - lr sum_j a_j v_j,    a_j: the sum of all slopes along member j so far

so P numbers are the whole state, however long the run: a client needs w0, which it draws from the
run's key, and never receives a parameter. They are rebuilt from w0 in every round, at the server
and at a client that follows, so that both have the same rounding; that costs P directions.

Departures: averages of the clients' sums (published: the same), in float64; members are drawn
uniformly (the -Pro variant draws those with larger slopes more often).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.states import keep
from forefed.core.types import Order, Params, ServerState, Update
from forefed.directions.pool import PooledDirections
from forefed.federation.download.download import Download
from forefed.federation.server import Server
from forefed.federation.state import RunState, below
from forefed.local import Trainer, check_slopes
from forefed.local.groups import Group, groups_of
from forefed.optimisers import Optimiser
from forefed.wire.records import RoundRecord, encode_record

SUMS = "sums"  # where the server's state keeps them: "sums/group" -> [P] float64


def sums_of(trainer: Trainer, order: Order, update: Update) -> Update:
    """``update`` with, as its ``grad``, what its slopes add to the members of the pool, by group.

    Raises:
        ProtocolError: slopes that do not fit the order.
    """
    groups = check_slopes(trainer, order, update)
    slopes = update.slopes or {}
    return replace(update, grad={g: _pooled(group).sums(slopes[g]) for g, group in groups.items()})


@dataclass(frozen=True)
class PooledServer(Server):
    """``Server`` whose updates are sums by member of the pool. ``first`` is w0; ``groups`` and
    ``steps`` are the clients' (they train everything, by plain gradient steps)."""

    first: Params = field(kw_only=True)
    groups: Mapping[str, Group] = field(kw_only=True)
    steps: Optimiser = field(kw_only=True)

    def rebuild(self, order: Order, update: Update) -> Update:
        return sums_of(self.trainer(order.client), order, update)

    def move(self, state: RunState, change: Params) -> tuple[ServerState, Params]:
        former = below(state.of("optimizer"), SUMS)
        sums = {g: former[g] + x if g in former else x for g, x in change.items()}
        return self.at({**former, **sums})

    def at(self, sums: Params) -> tuple[ServerState, Params]:
        """State and parameters of these sums."""
        params = dict(self.first)
        for group, a in sums.items():
            if group not in self.groups or not bool(torch.isfinite(a).all()):
                raise ProtocolError(f"sums of group {group!r} that this run does not have")
            members = self.groups[group]
            like = trees.pick(self.first, members.names)
            for name, moved in _pooled(members).moved(like, a).items():
                head_lr = self.steps.head_lr if name in self.head else None
                rate = self.steps.lr if head_lr is None else head_lr
                params[name] = (self.first[name].double() - rate * moved).to(self.first[name])
        return {f"{SUMS}/{g}": a for g, a in sums.items()}, params

    def missed(self, state: RunState, client: int) -> bytes | None:
        """The sums, or the rounds that the client missed where those are fewer bytes; whoever was
        never there needs the sums."""
        if state.round == 0:
            return b""
        none = {
            g: torch.zeros(_pooled(x).pool, dtype=torch.float64) for g, x in self.groups.items()
        }
        sums = {**none, **below(state.of("optimizer"), SUMS)}
        whole = encode_record(RoundRecord(state.round, (), sums), self.first)
        missed = state.log.missed(client)
        return whole if missed is None or len(missed) >= len(whole) else missed

    def replay(self, state: RunState, record: RoundRecord) -> RunState:
        """As for every server; from sums at once, whatever was missed."""
        if not record.sums:
            return super().replay(state, record)
        server, params = self.at(record.sums)
        states = keep(state.states, "optimizer", server)
        return replace(state, round=record.round, states=states, params=params)


def _pooled(group: Group) -> PooledDirections:
    assert isinstance(group.directions, PooledDirections), "config/compat.py wants a pool"
    return group.directions


class PoolDownload(Download):
    """One sum of slopes per direction of the pool, from the first values on; no parameters."""

    kind: Literal["pool"] = "pool"
    source: ClassVar[str] = "FedKSeed, arXiv 2312.06353"
    by_records: ClassVar[bool] = True
    by_sums: ClassVar[bool] = True

    def server(self, plain: Server, first: Params) -> Server:
        """As every server's, and the first values, the groups of clients that train everything, and
        their steps."""
        trainer = plain.trainer(0)
        order = Order(plain.key.value, 0, 0, tuple(first), first)
        groups = groups_of(
            trainer.engine, trainer.codec, order, trainer.task.head, trainer.directions
        )
        slots = {f.name: getattr(plain, f.name) for f in fields(Server)}
        steps = trainer.settings.optimiser
        return PooledServer(**slots, first=first, groups=groups, steps=steps)

    def held(self, first: Params) -> RunState | None:
        return RunState(0, first)

    def conflicts(self, config: Any) -> Iterator[str]:
        codec = config.codec
        plain = (
            codec.sends_slopes
            and config.directions.lasting
            and config.directions.head_k != "all"
            and config.assign.kind == "everything"
            and config.client.linear
            and config.server.plain
            and config.client.optimiser.steady
            and not config.modifiers
            and config.trigger.kind == "round"
        )
        if not plain:
            yield (
                "download.kind = 'pool': sums of slopes tell the parameters only with codec.kind = "
                "'scalars', directions.kind = 'pool', a number as directions.head_k, assign.kind = "
                "'everything', plain gradient steps at the clients (client.optimiser.kind = 'sgd', "
                "no momentum, weight decay), no modifiers, no schedule and plain averaging at the "
                "server (server.kind = 'sgd', server.lr = 1, trigger.kind = 'round'); "
                "set these, or download.kind = 'scalars'"
            )
