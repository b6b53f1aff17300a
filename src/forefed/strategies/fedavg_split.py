"""FedAvgSplit: backprop on SPRY's units (a baseline of arXiv 2405.15551, section 5).

Each client trains the units that it is assigned, with exact gradients, and sends only those. What
lies between this and FedAvg is the split; between this and SPRY, forward mode. A backward pass
ends at the client's lowest unit. With ``engine.kind = "checkpointed"`` it is SPRY's honest rival at
equal memory.

Departures: contiguous units that rotate, and the head at every client, as in ``strategies/spry.py``
(published: ``assign.kind = "cyclic"``, ``assign.rotate = false``, ``assign.head = "unit"``).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.spry import SPRY
from forefed.strategies.strategy import Strategy

FEDAVG_SPLIT = Strategy(
    name="fedavg_split",
    summary="FedAvg on SPRY's split: each client trains a few units by backprop.",
    source="arXiv 2405.15551, section 5",
    sections={**FEDAVG.sections, "assign": {"kind": "contiguous"}},
    fixed=SPRY.fixed,
)
