"""FlexLoRA: Bai et al., NeurIPS 2024 (arXiv 2402.11505): clients of ranks 2, 4 and 8, and the SVD
of the mean product in between (``sharing/ranks.py``, ``aggregate/flexlora.py``)."""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FLEXLORA = Strategy(
    name="flexlora",
    summary="Clients of different ranks; the mean product is split again by its SVD.",
    source="arXiv 2402.11505",
    sections={
        **FEDAVG.sections,
        "sharing": {"kind": "ranks"},
        "aggregator": {"kind": "flexlora"},
    },
    fixed={"adapter": ("lora",), "aggregator": ("flexlora",)},
)
