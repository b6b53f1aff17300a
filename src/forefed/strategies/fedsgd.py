"""FedSGD: McMahan et al., "Communication-efficient learning of deep networks from decentralized
data" (arXiv 1602.05629), section 2.

One gradient per client and round, over all of its examples; the server averages by example count
and takes one step. No drift, and more rounds than FedAvg. ``client.batch_size = 8`` sends one
mini-batch's gradient instead.

The client's "step" with rate 1 makes its change the gradient itself, so all rates are the server's.
Departure: the server's step is Adam's (published: plain); ``server.kind = "sgd"``.
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDSGD = Strategy(
    name="fedsgd",
    summary="One exact gradient per client and round, one step of the server.",
    source="arXiv 1602.05629, section 2",
    sections={
        **FEDAVG.sections,
        "client": {
            "max_steps": 1,
            "batch_size": "all",
            "optimiser": {"kind": "sgd", "lr": 1.0},
        },
        "server": {"kind": "adam", "lr": 1e-2, "head_lr": 0.1},
    },
    fixed=FEDAVG.fixed,
)
