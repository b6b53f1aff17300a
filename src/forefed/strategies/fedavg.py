"""FedAvg: McMahan et al., "Communication-efficient learning of deep networks from decentralized
data" (arXiv 1602.05629), Algorithm 1; line by line in ``federation/star.py``.

Every client trains all adapter parameters and the head for some local epochs with exact gradients;
the server averages by example count. The reference for accuracy, and for bytes.

A round takes few passes, and the first one is a poor judge of the tenth (docs/RESULTS.md, "What
follows the start"), so a run ends after three rounds in a row that lower no held-out loss
(``guard.patience``; published: never). Where there are clients for it they train against a head
that has not seen their rows, at three times the rate (``start.folds``; docs/RESULTS.md).
"""

from forefed.strategies.strategy import Strategy

FEDAVG = Strategy(
    name="fedavg",
    summary="Local training with exact gradients; the server averages by example count.",
    source="arXiv 1602.05629, Algorithm 1",
    sections={
        "adapter": {"kind": "lora", "r": 8, "alpha": 16.0},
        "assign": {"kind": "everything"},
        "engine": {"kind": "backprop"},
        "client": {"optimiser": {"kind": "adamw", "lr": 1e-3, "head_lr": 1e-2}},
        "codec": {"kind": "dense"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
        "guard": {"kind": "auto", "patience": 3},
    },
    fixed={"assign": ("everything",)},
    own={"start": {"kind": "auto", "folds": "auto", "folds_rate": 3.0}},
)
