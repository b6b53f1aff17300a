"""FedKRSO: Yang et al., INFOCOM 2026 (arXiv 2602.03019): FedAvg inside random subspaces that all
share (``aggregate/fedkrso.py``)."""

from forefed.strategies.ffa_lora import FFA_LORA
from forefed.strategies.strategy import Strategy

FEDKRSO = Strategy(
    name="fedkrso",
    summary="Exact gradients inside one of K shared random subspaces a round.",
    source="arXiv 2602.03019",
    sections={
        **FFA_LORA.sections,
        "adapter": {**FFA_LORA.sections["adapter"], "fold": True},
        "aggregator": {"kind": "fedkrso"},
    },
    fixed={**FFA_LORA.fixed, "aggregator": ("fedkrso",)},
)
