"""What the server carries from round to round, and the same as one dict of tensors.

The flat form is what a checkpoint stores, and what a client needs beside the parameters to go on by
records. Places: "params/...", "server/...", "rule/...", "memo/...", "pending/<number>/...".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from forefed.core.types import Params, ServerState, Update
from forefed.wire.records import RecordLog


@dataclass(frozen=True)
class RunState:
    """Everything the server carries. ``round`` counts finished rounds.

    ``pending``: updates that wait for more before the server moves; ``log``: what clients need to
    catch up (only the server has it).
    """

    round: int
    params: Params
    server: ServerState = field(default_factory=dict)
    rule: ServerState = field(default_factory=dict)
    memo: Params = field(default_factory=dict)
    pending: tuple[Update, ...] = ()
    log: RecordLog = field(default_factory=RecordLog)

    def flat(self) -> Params:
        """All but ``round`` and ``log``."""
        return {
            f"{prefix}/{name}": x
            for prefix, tree in (
                ("params", self.params),
                ("server", self.server),
                ("rule", self.rule),
                ("memo", self.memo),
                ("pending", _flat_updates(self.pending)),
            )
            for name, x in tree.items()
        }

    def carried(self) -> Params:
        """What a client needs beside parameters and memo to follow by records."""
        return {n: x for n, x in self.flat().items() if not n.startswith(("params/", "memo/"))}

    @staticmethod
    def of_flat(round: int, tensors: Params) -> RunState:
        """The inverse of ``flat``."""
        return RunState(
            round,
            below(tensors, "params"),
            below(tensors, "server"),
            below(tensors, "rule"),
            below(tensors, "memo"),
            _updates(below(tensors, "pending")),
        )


def below(tensors: Params, prefix: str) -> Params:
    """The tensors whose place starts with ``prefix/``, without it."""
    prefix += "/"
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def waiting(update: Update) -> Update:
    """Of an update what the server's step reads."""
    return replace(update, slopes=None, metrics={})


def _flat_updates(updates: Sequence[Update]) -> Params:
    flat: Params = {}
    for i, update in enumerate(updates):
        flat[f"{i}/about"] = torch.tensor([update.client, update.n_examples], dtype=torch.int64)
        for name, x in (update.grad or {}).items():
            flat[f"{i}/grad/{name}"] = x
        for name, x in update.last.items():
            flat[f"{i}/last/{name}"] = x
        for name, v in update.variance.items():
            flat[f"{i}/variance/{name}"] = torch.tensor(v, dtype=torch.float64)
    return flat


def _updates(flat: Params) -> tuple[Update, ...]:
    updates = []
    for i in range(sum(1 for n in flat if n.endswith("/about"))):
        tensors = below(flat, str(i))
        client, n_examples = (int(x) for x in tensors["about"])
        variance = {n: float(v) for n, v in below(tensors, "variance").items()}
        grad, last = below(tensors, "grad"), below(tensors, "last")
        updates.append(Update(client, n_examples, grad, variance=variance, last=last))
    return tuple(updates)
