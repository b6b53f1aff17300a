"""Fed-SB: Singhal et al., "Fed-SB: a silver bullet for extreme communication efficiency and
performance in (private) federated LoRA fine-tuning" (arXiv 2502.15436): only the r x r matrix R of
B R A is trained (``adapter.kind = "lora_sb"``), so r^2 numbers a matrix travel, and their mean is
the mean of the products.

Departures: A and B are the frozen matrix's singular vectors (published: of an estimated first
update); r = 16 at a rate of 1e-2 (published: r of 25 to 200).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDSB = Strategy(
    name="fedsb",
    summary="FedAvg over the r x r matrix of B R A; averages are exact, r^2 numbers travel.",
    source="arXiv 2502.15436",
    sections={
        **FEDAVG.sections,
        "adapter": {"kind": "lora_sb", "r": 16, "alpha": 16.0},
        "client": {"optimiser": {"kind": "adamw", "lr": 1e-2, "head_lr": 1e-2}},
    },
    fixed={**FEDAVG.fixed, "adapter": ("lora_sb",)},
)
