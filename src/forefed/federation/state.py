"""What the server carries from round to round, and the same as one dict of tensors.

The flat form is what a checkpoint stores, and what a client needs beside the parameters to go on by
records. Places: "params/...", "pending/<number>/...", and the states by owner (core/states.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from forefed.core.states import State, States, below, flat, of_flat
from forefed.core.types import Contribution, Params
from forefed.wire.records import RecordLog

__all__ = ["PARTICIPATION", "RunState", "below"]
PARTICIPATION = "participation"
"""Owner of the rounds in which each client was asked, where those are limited."""


@dataclass(frozen=True)
class RunState:
    """Everything the server carries. ``round`` counts finished rounds.

    ``states``: what the server's parts keep, by owner ("optimizer", "aggregator",
    "modifier.<kind>"); ``pending``: contributions that wait for more before the server moves;
    ``log``: what clients need to catch up (only the server has it).
    """

    round: int
    params: Params
    states: States = field(default_factory=dict)
    pending: tuple[Contribution, ...] = ()
    log: RecordLog = field(default_factory=RecordLog)

    def of(self, owner: str) -> State:
        """The state of one part; empty at first."""
        return self.states.get(owner, {})

    def flat(self) -> Params:
        """All but ``round`` and ``log``."""
        pending = _flat_contributions(self.pending)
        return flat({"params": self.params, **self.states, "pending": pending})

    def carried(self) -> Params:
        """What a client needs beside the parameters to follow by records."""
        own = ("params/", f"{PARTICIPATION}/")
        return {n: x for n, x in self.flat().items() if not n.startswith(own)}

    @staticmethod
    def of_flat(round: int, tensors: Params) -> RunState:
        """The inverse of ``flat``."""
        states = of_flat(tensors)
        params, pending = states.pop("params", {}), states.pop("pending", {})
        return RunState(round, params, states, _contributions(pending))


def _flat_contributions(contributions: Sequence[Contribution]) -> State:
    tensors: State = {}
    for i, c in enumerate(contributions):
        tensors[f"{i}/about"] = torch.tensor([c.client, int(c.weight)], dtype=torch.int64)
        tensors |= {f"{i}/delta/{n}": x for n, x in c.delta.items()}
        tensors |= {f"{i}/last/{n}": x for n, x in c.last_gradient.items()}
        for name, v in c.noise.items():
            tensors[f"{i}/noise/{name}"] = torch.tensor(v, dtype=torch.float64)
    return tensors


def _contributions(tensors: State) -> tuple[Contribution, ...]:
    found = []
    for i in range(sum(1 for n in tensors if n.endswith("/about"))):
        own = below(tensors, str(i))
        client, weight = (int(x) for x in own["about"])
        noise = {n: float(v) for n, v in below(own, "noise").items()}
        found.append(Contribution(client, weight, below(own, "delta"), noise, below(own, "last")))
    return tuple(found)
