"""ZorBA: Meng et al., "ZorBA: zeroth-order federated fine-tuning of LLMs with heterogeneous block
activation" (arXiv 2603.04436): every client trains some of the blocks, by loss differences along
directions that follow from shared seeds, and sends the differences.

    server  gives each client its blocks                                     (assign)
    client  differences along directions over its own blocks                 (engine, codec)

Departures: blocks are shared out evenly and anew in every round, as SPRY does it (published: by an
optimisation over memory and rate of convergence, once); LoRA r = 1 (published: the whole blocks);
the head has its exact gradient; ``engine.head = "perturbed"``.
"""

from forefed.strategies.strategy import Strategy

ZORBA = Strategy(
    name="zorba",
    summary="Clients train some blocks each, by loss differences, and send these alone.",
    source="arXiv 2603.04436",
    sections={
        "adapter": {"kind": "lora", "r": 1},
        "assign": {"kind": "contiguous"},
        "engine": {"kind": "finite_difference"},
        "directions": {"kind": "fresh", "k": 10},
        "client": {"max_steps": 1, "optimiser": {"kind": "sgd", "lr": 1e-2, "head_lr": 1.0}},
        "codec": {"kind": "scalars"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
    },
    fixed={
        "assign": ("contiguous", "cyclic"),
        "engine": ("finite_difference",),
        "codec": ("scalars",),
    },
)
