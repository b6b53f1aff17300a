"""The toy world with shared directions and records: stars of six clients, in memory.

``ballast`` adds parameters that the loss does not see, so that a record is fewer bytes than they.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forefed.aggregate import Mean
from forefed.assign import Everything
from forefed.collect import EveryRound
from forefed.core.keys import Key
from forefed.core.types import Params, Unit
from forefed.local import LocalTraining, TaskView, Trainer
from forefed.optimisers import Sgd
from forefed.run.build import rebuild, receive
from forefed.run.inprocess import InProcess
from forefed.run.pool import PooledServer, pooled_groups, sums_of
from forefed.run.replica import Replica
from forefed.run.server import Server
from forefed.run.star import RunState, Star
from forefed.wire import Scalars
from toy import HEAD, ToyLoss, toy_clients, toy_params, toy_units

FLOAT = torch.float32


@dataclass(frozen=True)
class Deaf:
    """The toy's loss, deaf to the ballast."""

    loss: ToyLoss

    def __call__(self, params, batch):
        return self.loss({n: x for n, x in params.items() if n != "ballast"}, batch)

    def weight(self, batch):
        return batch.size


def params(ballast: int = 1000, dtype: torch.dtype = FLOAT) -> Params:
    extra = {"ballast": torch.zeros(ballast, dtype=dtype)} if ballast else {}
    return {**toy_params(dtype), **extra}


def star(
    engine,
    *,
    codec=None,
    cohort=2,
    ballast=1000,
    dtype=FLOAT,
    server=None,
    modifiers=(),
    collect=None,
    assign=None,
    by_records=True,
    faults=None,
    by_sums=False,
    **settings,
) -> Star:
    codec = codec or Scalars(head_directions=4)
    settings = {"batch_size": 4, "optimiser": Sgd(lr=0.05), **settings}
    loss = Deaf(ToyLoss(dtype))
    trainer = Trainer(LocalTraining(**settings), engine, codec, TaskView(loss, loss, HEAD))
    clients = toy_clients()
    slots = {
        "key": Key(4),
        "head": HEAD,
        "aggregator": Mean(),
        "optimiser": server or Sgd(),
        "modifiers": modifiers,
        "collect": collect or EveryRound(),
        "averages_slopes": codec.sends_slopes and engine.shared,
    }
    step = Server(**slots, rebuild=lambda order, update: rebuild(trainer, order, update))
    first = params(ballast, dtype)
    if by_sums:
        step = PooledServer(
            **slots,
            rebuild=lambda order, update: sums_of(trainer, order, update),
            first=first,
            groups=pooled_groups(trainer, 4, first),
            steps=trainer.settings.optimiser,
        )
    begin = RunState(0, first) if by_sums else None
    transport = InProcess(
        len(clients),
        clients.__getitem__,
        trainer,
        codec.encode,
        faults=faults or {},
        replica=Replica(step, begin) if by_records else None,
    )
    units = (*toy_units(), *([Unit("ballast", ("ballast",), 1, ballast)] if ballast else []))
    return Star(
        Key(4),
        units,
        cohort,
        assign or Everything(),
        transport,
        lambda reply, order: receive(trainer, reply, order, step),
        step,
        by_records=by_records,
    )


def play(loop: Star, rounds: int, state: RunState | None = None, ballast: int = 1000):
    state = state or RunState(0, params(ballast))
    reports = []
    for _ in range(rounds):
        state, report = loop.round(state)
        reports.append(report)
    return state, reports
