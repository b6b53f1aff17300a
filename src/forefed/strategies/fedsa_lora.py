"""FedSA-LoRA: Guo et al., ICLR 2025 (arXiv 2410.01463): A is averaged, every client keeps its own B
(``sharing/fedsa_lora.py``).

Departure: AdamW at FedAvg's rates (published: SGD at 0.02).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDSA_LORA = Strategy(
    name="fedsa_lora",
    summary="FedAvg over LoRA's A; every client keeps its own B.",
    source="arXiv 2410.01463",
    sections={**FEDAVG.sections, "sharing": {"kind": "fedsa_lora"}},
    fixed={"adapter": ("lora",), "codec": ("dense", "quantised"), "sharing": ("fedsa_lora",)},
)
