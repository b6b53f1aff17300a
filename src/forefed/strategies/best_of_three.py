"""FedAvg whose clients also train alone, and answer with the best of three models by their own
held-out rows (``local/best_of_three.py``, ``sharing/best_of_three.py``; Mansour et al., arXiv
2002.10619, for the kinds of models).

Departure: chosen by each client for itself (published: bounds for each kind by itself).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

BEST_OF_THREE = Strategy(
    name="best_of_three",
    summary="Common, tuned or alone: each client keeps what its held-out rows prefer.",
    source="arXiv 2002.10619",
    sections={
        **FEDAVG.sections,
        "client": {**FEDAVG.sections["client"], "kind": "best_of_three"},
        "sharing": {"kind": "best_of_three"},
    },
    fixed={**FEDAVG.fixed, "client": ("best_of_three",), "sharing": ("best_of_three",)},
)
