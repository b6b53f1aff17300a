"""MoNNA: Farhadkhani et al., "Robust collaborative learning with linear gradient overhead" (ICML
2023, arXiv 2209.10931), Algorithm 1.

No server, and some nodes may lie: every node keeps a momentum of its changes and averages the n - f
models nearest to its own. Departures: a change is that of several local steps (published: one
gradient), and beta = 0.9 for it (published: 0.99 over steps; ``modifiers = [{kind = "momentum",
beta = 0.99}]``).
"""

from forefed.strategies.strategy import Strategy

MONNA = Strategy(
    name="monna",
    summary="No server, lying nodes: momentum, then the mean of the models nearest to one's own.",
    source="arXiv 2209.10931, Algorithm 1",
    sections={
        "adapter": {"kind": "lora", "r": 8, "alpha": 16.0},
        "assign": {"kind": "everything"},
        "engine": {"kind": "backprop"},
        "client": {"optimiser": {"kind": "adamw", "lr": 1e-3, "head_lr": 1e-2}},
        "modifiers": [{"kind": "momentum", "beta": 0.9}],
        "codec": {"kind": "dense"},
        "aggregator": {"kind": "nna", "pivot": "own"},
        "server": {"kind": "sgd", "lr": 1.0},
        "topology": {"kind": "gossip", "graph": {"kind": "full"}},
    },
    fixed={"assign": ("everything",), "codec": ("dense",), "aggregator": ("nna",)},
)
