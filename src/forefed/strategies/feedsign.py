"""FeedSign: "Robust full-parameter federated fine-tuning of large models with extremely low
communication overhead of one bit" (arXiv 2501.17610), Algorithm 1.

    client  walks along directions that all share; sends the signs of its slopes     (engine, codec)
    server  takes what most clients say, and moves as a client with these would      (aggregator)
    client  follows the rounds that it missed from their records                     (download)

One client has one vote a direction, whatever it sends: a few liars cannot move a step far.

Departures, each a setting:
- slopes by forward-mode AD, K = 10 directions a step (published: one central difference);
  ``engine.kind = "finite_difference"``, ``directions.k = 1``;
- random signs as directions (published: Gaussian values); ``directions.distribution = "gauss16"``;
- the head's exact gradient is projected on shared directions of its own (published: perturbed with
  everything else); ``engine.head = "perturbed"``;
- rates that were not tuned on any task: a step's length is the rate's alone, whatever the slopes;
- a tie of an even cohort moves nothing (published: by chance);
- what travels down is a record with float32 votes (published: one bit).
"""

from forefed.strategies.decomfl import DECOMFL
from forefed.strategies.strategy import Strategy

FEEDSIGN = Strategy(
    name="feedsign",
    summary="Shared directions; every client sends one bit a direction, and the majority decides.",
    source="arXiv 2501.17610, Algorithm 1",
    sections={
        **DECOMFL.sections,
        "client": {"max_steps": 1, "optimiser": {"kind": "sgd", "lr": 0.01, "head_lr": 0.05}},
        "codec": {"kind": "feedsign"},
        "aggregator": {"kind": "median"},
    },
    fixed={"assign": ("everything",), "codec": ("feedsign",), "aggregator": ("median",)},
)
