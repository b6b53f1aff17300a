"""FedDyn: Acar et al., ICLR 2021 (arXiv 2111.04263): the modifier ``feddyn``.

Departure: alpha = 0.1 (published: 0.01 to 0.1), with AdamW at the clients (published: SGD).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDDYN = Strategy(
    name="feddyn",
    summary="FedAvg whose clients correct their drift by what it has added up to.",
    source="arXiv 2111.04263, Algorithm 1",
    sections={**FEDAVG.sections, "modifiers": [{"kind": "feddyn"}]},
    fixed={**FEDAVG.fixed, "codec": ("dense", "quantised", "sparse"), "modifiers": ("feddyn",)},
)
