"""SPRY: Panchal et al., "Thinking forward: memory-efficient federated finetuning of language
models" (NeurIPS 2024, arXiv 2405.15551), Algorithm 1.

    server, each round r                                     slot         where
      sample a cohort                                        select       Star.drawn
      split the trainable units among it                     assign       Star.plan, assign.py
    client, each local step
      draw v for its own units from the seed it was sent     directions   directions/basis.py
      one forward pass: slope = <gradient, v>                engine       gradients/forward.py
      gradient estimate = slope * v                                       local/groups.py rebuild
      step along it                                          client       local/training.py advance
    server
      average every unit over the clients that trained it    aggregator   aggregate/mean.py
      an adaptive step of the units that were trained        server       Server.apply

A client sends what its units have changed by, at four bits an element. With ``codec.kind =
"scalars"`` it sends its slopes, and the server replays its steps; with ``client.max_steps = 1``
besides, that is the paper's per-iteration mode.

Departures, each a setting:
- the head has its exact gradient and is trained by every client (published: perturbed together with
  the adapters, as a unit of its own); ``engine.head = "perturbed"``, ``assign.head = "unit"``;
- contiguous runs of units that rotate over the rounds (published: a fixed cyclic map);
  ``assign.kind = "cyclic"``, ``assign.rotate = false``;
- a few-parameter adapter whose client units are small enough for exact gradients by unit vectors
  (published: LoRA r = 1 and one random direction, whose noise is that of thousands of dimensions);
  ``adapter.kind = "lora"``, ``directions.k = 1``, ``directions.distribution = "gauss16"``;
- every unit is trained by four clients or more (published: one, where units are enough);
  ``assign.replicas = 1``;
- the server averages (published: FedYogi); ``server.kind = "yogi"``. With random directions take
  plain client steps and an adaptive server instead (docs/spry.md): AdamW at a client scales the
  noise of an estimate up to full steps;
- clients step at 2e-3, which suits a head that is solved and stays (``start``); where it is learnt
  with the rest, as language models' and spans', 2e-2 was better (docs/LOG.md);
- updates travel at four bits an element (published: in full); ``codec.kind = "dense"``.
"""

from forefed.strategies.strategy import Strategy

SPRY = Strategy(
    name="spry",
    summary="Forward-mode AD on a few units per client; slopes or units travel, never a backward.",
    source="arXiv 2405.15551, Algorithm 1",
    sections={
        "adapter": {
            "kind": "tinylora",
            "r": 64,
            "u": 64,
            "targets": "all-linear",
            "layers": "last:3",
        },
        "assign": {"kind": "contiguous", "replicas": 4},
        "engine": {"kind": "forward"},
        "directions": {"kind": "basis"},
        "client": {"optimiser": {"kind": "adamw", "lr": 2e-3, "head_lr": 2e-2}},
        "codec": {"kind": "quantised", "bits": 4},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
    },
    fixed={"assign": ("contiguous", "cyclic")},
)
