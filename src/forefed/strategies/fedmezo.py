"""FedMeZO: Ling et al., "On the convergence of zeroth-order federated tuning for large language
models" (arXiv 2402.05926): FedAvg with MeZO (arXiv 2305.17333) as the local optimiser.

    client  one central difference of the loss along one random direction over everything that is
            trained, a plain step along it, for some local epochs            (engine, client)
    server  averages by example count                                        (aggregator)

As published the head is perturbed together with the adapters, and drowns their signal;
``engine.head = "exact"`` gives it its own gradient and perturbs the adapters alone.

Departures, each a setting:
- differences of 1e-2, which float32 losses bear (published: 1e-3); ``engine.eps``;
- parameters travel; ``codec.kind = "scalars"`` sends one number per step and ends with the same
  bits.
"""

from forefed.strategies.strategy import Strategy

FEDMEZO = Strategy(
    name="fedmezo",
    summary="FedAvg whose local steps follow one loss difference each (MeZO).",
    source="arXiv 2402.05926; arXiv 2305.17333",
    sections={
        "adapter": {"kind": "lora", "r": 1},
        "assign": {"kind": "everything"},
        "engine": {"kind": "finite_difference", "head": "perturbed"},
        "directions": {"kind": "fresh", "k": 1, "distribution": "gauss16"},
        "client": {"optimiser": {"kind": "sgd", "lr": 1e-2}},
        "codec": {"kind": "dense"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
    },
    fixed={"assign": ("everything",), "engine": ("finite_difference",)},
)
