"""FedFGD: SPRY without the split (the ablation of arXiv 2405.15551, section 5).

Every client perturbs all trainable units; each step's error grows with all their dimensions.

Random directions, as published; SPRY's unit vectors would make this FedAvg at many times its cost.
So the clients take plain steps (published: AdamW) and the server an adaptive one, Adam (FedYogi).
"""

from forefed.strategies.strategy import Strategy

FEDFGD = Strategy(
    name="fedfgd",
    summary="Forward gradients over all units at every client (SPRY without the split).",
    source="arXiv 2405.15551, section 5",
    sections={
        "adapter": {"kind": "tinylora", "r": 4, "u": 16},
        "assign": {"kind": "everything"},
        "engine": {"kind": "forward"},
        "directions": {"kind": "fresh", "k": 4},
        "client": {"optimiser": {"kind": "sgd", "lr": 1.0, "head_lr": 3.0}},
        "codec": {"kind": "dense"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "adam", "lr": 1e-2, "head_lr": 0.1},
    },
    fixed={"assign": ("everything",), "engine": ("forward",)},
)
