"""FedProx: Li et al., "Federated optimization in heterogeneous networks" (arXiv 1812.06127),
Algorithm 2.

FedAvg with a pull to the round's start: g <- gradient + mu (w - w_start). It limits how far clients
drift apart and does not remove it: the fixed point moves to the optimum only as mu grows.

Departure: mu = 0.01 (published: a grid from 0.001 to 1); the modifier ``proximal``.
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDPROX = Strategy(
    name="fedprox",
    summary="FedAvg whose clients are pulled back to where their round started.",
    source="arXiv 1812.06127, Algorithm 2",
    sections={**FEDAVG.sections, "modifiers": [{"kind": "proximal", "mu": 0.01}]},
    fixed={**FEDAVG.fixed, "modifiers": ("proximal",)},
)
