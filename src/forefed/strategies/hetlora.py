"""HetLoRA: Cho et al., EMNLP 2024 (arXiv 2401.06432): clients of ranks 2, 4 and 8, whose factors
are filled up with zeros and averaged (``sharing/ranks.py``, ``aggregate/hetlora.py``)."""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

HETLORA = Strategy(
    name="hetlora",
    summary="Clients of different ranks; padded factors are averaged.",
    source="arXiv 2401.06432",
    sections={
        **FEDAVG.sections,
        "sharing": {"kind": "ranks"},
        "aggregator": {"kind": "hetlora"},
    },
    fixed={"adapter": ("lora",), "aggregator": ("hetlora",)},
)
