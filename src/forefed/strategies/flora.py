"""FLoRA: Wang et al., NeurIPS 2024 (arXiv 2409.05976): stacked LoRA updates are added to the
matrices, and adapters begin anew in every round (``aggregate/flora.py``). Ranks may differ: set
``sharing.kind = "ranks"``."""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FLORA = Strategy(
    name="flora",
    summary="LoRA updates of any rank are stacked and added to the matrices in every round.",
    source="arXiv 2409.05976",
    sections={
        **FEDAVG.sections,
        "adapter": {**FEDAVG.sections["adapter"], "fold": True},
        "aggregator": {"kind": "flora"},
    },
    fixed={"adapter": ("lora",), "aggregator": ("flora",)},
)
