"""FedKSeed: Qin et al., "Federated full-parameter tuning of billion-sized language models with
communication cost under 18 kilobytes" (arXiv 2312.06353), Algorithm 1.

    client  draws a direction of the run's pool in every step; sends the slopes      (engine, codec)
    server  sums the slopes of every direction; 8 KB tell where the run is           (download)

Departures, each a setting or said there:
- members are drawn uniformly (the -Pro variant: by their past slopes);
- steps whose slope is not finite are skipped and counted (published: steps with large loss
  differences are dropped silently);
- adapters instead of all parameters: their first values come from the run's key, as the pool does.
As published the head is perturbed together with the adapters; ``engine.head = "exact"`` is better.
The pool must have more directions than the task needs dimensions.
"""

from forefed.strategies.strategy import Strategy

FEDKSEED = Strategy(
    name="fedkseed",
    summary="Many local steps along a fixed pool of directions; one sum per direction travels.",
    source="arXiv 2312.06353, Algorithm 1",
    sections={
        "adapter": {"kind": "tinylora", "r": 4, "u": 16},
        "assign": {"kind": "everything"},
        "engine": {"kind": "finite_difference", "head": "perturbed"},
        "directions": {"kind": "pool", "size": 1024, "k": 1, "distribution": "gauss16"},
        "client": {"max_steps": 50, "epochs": 5, "optimiser": {"kind": "sgd", "lr": 1e-3}},
        "codec": {"kind": "scalars"},
        "download": {"kind": "pool"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
    },
    fixed={"assign": ("everything",), "codec": ("scalars",)},
)
