"""FedFGD: SPRY without the split (the ablation of arXiv 2405.15551, section 5).

Every client perturbs all trainable units; each step's error grows with all their dimensions.
"""

from forefed.strategies.spry import SPRY
from forefed.strategies.strategy import Strategy

FEDFGD = Strategy(
    name="fedfgd",
    summary="Forward gradients over all units at every client (SPRY without the split).",
    source="arXiv 2405.15551, section 5",
    sections={**SPRY.sections, "assign": {"kind": "everything"}},
    fixed={"assign": ("everything",), "engine": ("forward",)},
)
