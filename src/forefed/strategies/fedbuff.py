"""FedBuff: Nguyen et al., AISTATS 2022 (arXiv 2106.06639): FedAvg that waits for nobody
(``federation/topology/buffered.py``; in a rehearsal clocks are simulated).

Departures: AdamW at FedAvg's rates and averaging at the server (published: SGD, and momentum 0.3).
"""

from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.strategy import Strategy

FEDBUFF = Strategy(
    name="fedbuff",
    summary="FedAvg that moves with every so many answers, however old.",
    source="arXiv 2106.06639",
    sections={**FEDAVG.sections, "topology": {"kind": "buffered"}},
    fixed={**FEDAVG.fixed, "topology": ("buffered",)},
)
