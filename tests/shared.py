"""The toy world with shared directions and records: stars of six clients, in memory.

``ballast`` adds parameters that the loss does not see, so that a record is fewer bytes than they.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forefed.assign import Everything
from forefed.core.types import Params, Unit
from forefed.directions import Fresh
from forefed.federation.star import RunState, Star
from forefed.local import LocalTraining
from forefed.optimisers import Sgd
from forefed.run import Config
from forefed.run.simulate import star_over
from forefed.trigger import EveryRound
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
    trigger=None,
    assign=None,
    by_records=True,
    faults=None,
    by_sums=False,
    directions=None,
    **settings,
) -> Star:
    loss = Deaf(ToyLoss(dtype))
    config = Config(
        seed=4,
        cohort=cohort,
        engine=engine,
        directions=directions or Fresh(k=3, head_k=4),
        assign=assign or Everything(),
        client=LocalTraining(**{"batch_size": 4, "optimiser": Sgd(lr=0.05), **settings}),
        codec=codec or Scalars(),
        server=server or Sgd(),
        modifiers=modifiers,
        trigger=trigger or EveryRound(),
        download="pool" if by_sums else "scalars" if by_records else "dense",
        faults=faults or {},
    )
    units = (*toy_units(), *([Unit("ballast", ("ballast",), 1, ballast)] if ballast else []))
    return star_over(config, loss, params(ballast, dtype), toy_clients(), units, HEAD)


def play(loop: Star, rounds: int, state: RunState | None = None, ballast: int = 1000):
    state = state or RunState(0, params(ballast))
    reports = []
    for _ in range(rounds):
        state, report = loop.round(state)
        reports.append(report)
    return state, reports
