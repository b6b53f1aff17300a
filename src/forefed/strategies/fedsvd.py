"""FedSVD: Lee et al., NeurIPS 2025 (arXiv 2505.12805): FFA-LoRA whose resting A is fitted to the
product after every round (``aggregate/fedsvd.py``)."""

from forefed.strategies.ffa_lora import FFA_LORA
from forefed.strategies.strategy import Strategy

FEDSVD = Strategy(
    name="fedsvd",
    summary="FedAvg over LoRA's B; the server gives A orthonormal rows that fit the product.",
    source="arXiv 2505.12805",
    sections={**FFA_LORA.sections, "aggregator": {"kind": "fedsvd"}},
    fixed={**FFA_LORA.fixed, "aggregator": ("fedsvd",)},
)
