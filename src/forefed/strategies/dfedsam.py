"""DFedSAM-MGS: Shi et al., "Improving the model consistency of decentralized federated learning"
(ICML 2023, arXiv 2302.04083), Algorithm 1.

No server: every node takes local steps of sharpness-aware minimisation, whose flat minima lie
closer together, and then several gossip steps. DFedSAM: ``topology.steps = 1``; DFedAvg: ``engine =
"backprop"``. Departures: Metropolis weights; AdamW, not SGD with momentum; the exponential graph.
"""

from forefed.strategies.strategy import Strategy

DFEDSAM = Strategy(
    name="dfedsam",
    summary="No server: sharpness-aware local steps, then several gossip steps on a graph.",
    source="arXiv 2302.04083, Algorithm 1",
    sections={
        "adapter": {"kind": "lora", "r": 8, "alpha": 16.0},
        "assign": {"kind": "everything"},
        "engine": {"kind": "sam", "rho": 0.01},
        "client": {"optimiser": {"kind": "adamw", "lr": 1e-3, "head_lr": 1e-2}},
        "codec": {"kind": "dense"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
        "topology": {"kind": "gossip", "graph": {"kind": "exponential"}, "steps": 4},
    },
    fixed={"assign": ("everything",), "codec": ("dense",)},
)
