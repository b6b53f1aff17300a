"""DeComFL: "Achieving dimension-free communication in federated learning via zeroth-order
optimization" (arXiv 2405.15861), Algorithms 1 and 2.

    client  follows the rounds that it missed from their scalars             (download)
    client  walks along directions that all share; sends the slopes          (engine, codec)
    server  averages the slopes, and moves as a client with these would      (rule, server)

Traffic depends neither on the number of parameters nor, downwards, on the cohort. Averaged slopes
are the slopes of the mean loss, so no more clients make them less noisy: K does.

Departures, each a setting:
- slopes by forward-mode AD, K = 10 (published: one forward difference of 1e-3);
  ``engine.kind = "finite_difference"``, ``directions.k = 1``;
- random signs (published: Gaussian values); ``directions.distribution = "gauss16"``;
- the head's exact gradient is projected on shared directions of its own (published: perturbed with
  everything else); ``engine.head = "perturbed"``;
- a client that was away for longer than the parameters are large receives those (published: the
  log is kept for the client that was away longest).
"""

from forefed.strategies.strategy import Strategy

DECOMFL = Strategy(
    name="decomfl",
    summary="Shared directions: averaged slopes travel both ways, parameters only to newcomers.",
    source="arXiv 2405.15861, Algorithms 1 and 2",
    sections={
        "adapter": {"kind": "tinylora", "r": 4, "u": 16},
        "assign": {"kind": "everything"},
        "engine": {"kind": "forward"},
        "directions": {"kind": "fresh", "k": 10, "shared": True},
        "client": {"max_steps": 1, "optimiser": {"kind": "sgd", "lr": 0.1, "head_lr": 1.0}},
        "codec": {"kind": "scalars"},
        "download": {"kind": "scalars"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
    },
    fixed={"assign": ("everything",), "codec": ("scalars",)},
)
