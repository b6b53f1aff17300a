"""Flow: Panchal et al., NeurIPS 2023 (arXiv 2211.15281): every client has a path of its own beside
the common one, and a gate that chooses (``local/flow.py``, ``sharing/flow.py``).

Departures: beside those of ``local/flow.py``, one local epoch of AdamW at FedAvg's rates
(published: SGD with momentum 0.9, three to five epochs).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FLOW = Strategy(
    name="flow",
    summary="A path of each client's own beside the common one; a gate chooses for each token.",
    source="arXiv 2211.15281",
    sections={
        **FEDAVG.sections,
        "adapter": {"kind": "lora_flow", "r": 8, "alpha": 16.0},
        "client": {**FEDAVG.sections["client"], "kind": "flow"},
        "sharing": {"kind": "flow"},
    },
    fixed={
        **FEDAVG.fixed,
        "adapter": ("lora_flow",),
        "client": ("flow",),
        "sharing": ("flow",),
    },
)
