"""FFA-LoRA: Sun et al., ICLR 2024 (arXiv 2403.12313): FedAvg over B alone, A at rest
(``sharing/ffa_lora.py``).

Departure: AdamW at FedAvg's rates (published: SGD at 0.02, which wants its rate anew per model).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FFA_LORA = Strategy(
    name="ffa_lora",
    summary="FedAvg over LoRA's B alone; A rests, so averages are exact.",
    source="arXiv 2403.12313",
    sections={**FEDAVG.sections, "sharing": {"kind": "ffa_lora"}},
    fixed={"adapter": ("lora",), "sharing": ("ffa_lora",)},
)
