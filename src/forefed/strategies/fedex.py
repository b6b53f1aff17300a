"""FedEx-LoRA: Singhal et al., ACL 2025 (arXiv 2410.09432): FedAvg over LoRA, whose aggregate is
made exact by a dense residual (``aggregate/fedex.py``)."""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDEX = Strategy(
    name="fedex",
    summary="FedAvg over LoRA; what averages of A and B miss is added to the matrices.",
    source="arXiv 2410.09432",
    sections={
        **FEDAVG.sections,
        "adapter": {**FEDAVG.sections["adapter"], "fold": True},
        "aggregator": {"kind": "fedex"},
    },
    fixed={"adapter": ("lora",), "aggregator": ("fedex",)},
)
