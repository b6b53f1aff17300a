"""DADAO: Nabli and Oyallon (ICML 2023, arXiv 2208.00779): no server, for a convex head.

The head on frozen features, by exact gradients over all rows of a node, by clocks of nodes and
edges (federation/topology/dadao.py, which says the departures). ``topology.smoothness`` must be
told: (1 + max |h|^2) / 2 for cross-entropy over features h.
"""

from forefed.strategies.strategy import Strategy

DADAO = Strategy(
    name="dadao",
    summary="No server, no rounds: an accelerated exact method for a convex head, by clocks.",
    source="arXiv 2208.00779, Algorithm 1",
    sections={
        "adapter": {"kind": "head"},
        "assign": {"kind": "everything"},
        "engine": {"kind": "exact_head"},
        "client": {"batch_size": "all", "optimiser": {"kind": "sgd", "lr": 1.0}},
        "codec": {"kind": "dense"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
        "topology": {"kind": "dadao", "graph": {"kind": "exponential"}, "smoothness": 16.0},
    },
    fixed={
        "adapter": ("head",),
        "assign": ("everything",),
        "codec": ("dense",),
        "topology": ("dadao",),
    },
)
