"""BAFFLE+: Feng et al., "Does federated learning really need backpropagation?" (arXiv 2301.12195),
Algorithm 1, over the trained tensors only (as SPRY compares with it, arXiv 2405.15551).

    client  central differences of its whole local loss along K directions that all clients share;
            sends these K numbers                                            (engine, codec)
    server  averages the numbers, which secure sums could add up unseen, rebuilds the gradient from
            them, and takes an adaptive step                                 (rule, server)

As published the head is perturbed together with the adapters; ``engine.head = "exact"`` is better.
BAFFLE proper perturbs the base, too, which stays frozen here.

Departure: differences of 1e-2 (published: 1e-4, whose rounding error is 0.2 % of the gradient in
float32 and all of it in half precision); ``engine.eps``.
"""

from forefed.strategies.strategy import Strategy

BAFFLE = Strategy(
    name="baffle",
    summary="Ten loss differences per client along shared directions (BAFFLE+).",
    source="arXiv 2301.12195, Algorithm 1",
    sections={
        "adapter": {"kind": "lora", "r": 1},
        "assign": {"kind": "everything"},
        "engine": {"kind": "finite_difference", "head": "perturbed"},
        "directions": {"kind": "fresh", "k": 10, "distribution": "gauss16", "shared": True},
        "client": {
            "max_steps": 1,
            "batch_size": "all",
            "optimiser": {"kind": "sgd", "lr": 1.0},
        },
        "codec": {"kind": "scalars"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "adamw", "lr": 1e-3},
    },
    fixed={"assign": ("everything",), "engine": ("finite_difference",)},
)
