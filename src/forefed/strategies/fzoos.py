"""FZooS: Shu et al., "Federated zeroth-order optimization using trajectory-informed surrogate
gradients" (arXiv 2308.04077).

For models that are only functions, of at most about 2,000 parameters: every client draws a Gaussian
process through all losses that it has asked and walks along its gradient, corrected by what
everybody's say (modifiers/fzoos.py, gradients/surrogate.py). Against finite differences it saves
questions, not bytes: beside D numbers of the change 1,000 travel up.

Departures: steps of 0.01 (published: 0.1, for a few large parameters); 1,000 features (published:
10,000); a change, not the parameters; what the two parts say of themselves.
"""

from forefed.strategies.strategy import Strategy

FZOOS = Strategy(
    name="fzoos",
    summary="Black boxes with a memory: steps along surrogates through all losses asked so far.",
    source="arXiv 2308.04077, Algorithm 1",
    sections={
        "adapter": {"kind": "tinylora"},
        "assign": {"kind": "everything"},
        "engine": {"kind": "surrogate"},
        "client": {
            "batch_size": "all",
            "epochs": 10,
            "optimiser": {"kind": "adamw", "lr": 1e-2, "weight_decay": 0.0},
        },
        "modifiers": [{"kind": "fzoos"}],
        "codec": {"kind": "dense"},
        "aggregator": {"kind": "mean"},
        "server": {"kind": "sgd", "lr": 1.0},
    },
    fixed={"assign": ("everything",), "engine": ("surrogate",), "codec": ("dense",)},
)
