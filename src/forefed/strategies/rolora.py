"""RoLoRA: Chen et al., NeurIPS 2025 (arXiv 2502.01755): LoRA's factors take turns
(``sharing/rolora.py``).

Departure: AdamW at FedAvg's rates, whose moments end with a client's round (published: as kept).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

ROLORA = Strategy(
    name="rolora",
    summary="FedAvg over LoRA's B in odd rounds, over A in even ones.",
    source="arXiv 2502.01755",
    sections={**FEDAVG.sections, "sharing": {"kind": "rolora"}},
    fixed={"adapter": ("lora",), "sharing": ("rolora",)},
)
