"""FedAdam: Reddi et al., "Adaptive federated optimization" (arXiv 2003.00295), Algorithm 2.

FedAvg with an adaptive step on the mean change of a round: m / (sqrt(v) + tau), where v is a moving
average of the squared change; no bias correction.

Departures: v starts at 0 (published: at tau^2 or more); the head has ten times the adapters' rate,
here as at the clients (published: one rate), ``server.head_lr``.
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDADAM = Strategy(
    name="fedadam",
    summary="FedAvg with an Adam step at the server.",
    source="arXiv 2003.00295, Algorithm 2",
    sections={**FEDAVG.sections, "server": {"kind": "adam", "lr": 1e-2, "head_lr": 0.1}},
    fixed={**FEDAVG.fixed, "server": ("adam",)},
)
