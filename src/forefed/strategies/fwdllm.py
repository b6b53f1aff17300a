"""FwdLLM: Xu et al., "FwdLLM: Efficient federated finetuning of large language models with
perturbed inferences" (arXiv 2308.13894).

    client  of 10 candidate directions walks along the one nearest the last global update; slopes by
            central differences of the loss                                  (engine, modifiers)
    server  collects answers at unchanged parameters until their mean is quiet enough   (trigger)
    server  an AdamW step on that mean                                       (server)

Departures, each a setting or said there:
- the share of the estimate along the last update, which the choice makes too large, is taken out
  again (published: kept), directions/candidates.py;
- every candidate set is compared (the public port compares the last one only), and each of the K
  directions is another one (there: one, K times);
- the threshold is the variance of the mean over the squared norm of the gradient, at most 4
  (published: the sum of variances, at most 100); ``trigger.ratio``;
- slopes travel, not the gradients that they stand for; ``codec.kind = "dense"``;
- candidates are compared as soon as there is a last update (the port: from round 3 on).
As published the head is perturbed together with the adapters; ``engine.head = "exact"`` is better.
"""

from forefed.strategies.strategy import Strategy

FWDLLM = Strategy(
    name="fwdllm",
    summary="Perturbed inferences along the best of some candidates, until their mean is quiet.",
    source="arXiv 2308.13894",
    sections={
        "adapter": {"kind": "lora", "r": 1},
        "assign": {"kind": "everything"},
        "engine": {"kind": "finite_difference", "head": "perturbed"},
        "directions": {"kind": "candidates", "count": 10, "k": 20, "distribution": "gauss16"},
        "client": {"max_steps": 1, "optimiser": {"kind": "sgd", "lr": 1.0}},
        "codec": {"kind": "scalars"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "adamw", "lr": 1e-3},
        "modifiers": [{"kind": "last_update"}],
        "trigger": {"kind": "variance"},
    },
    fixed={"assign": ("everything",), "modifiers": ("last_update",)},
)
