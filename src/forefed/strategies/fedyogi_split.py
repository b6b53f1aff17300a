"""FedYogiSplit: FedAvgSplit with FedYogi's server (a baseline of arXiv 2405.15551, section 5).

Units that nobody trained in a round keep their values and their moments. Departures as in
``strategies/fedavg_split.py`` and ``strategies/fedadam.py``.
"""

from forefed.strategies.fedavg_split import FEDAVG_SPLIT
from forefed.strategies.fedyogi import FEDYOGI
from forefed.strategies.strategy import Strategy

FEDYOGI_SPLIT = Strategy(
    name="fedyogi_split",
    summary="FedAvg on SPRY's split, with a Yogi step at the server.",
    source="arXiv 2405.15551, section 5",
    sections={**FEDAVG_SPLIT.sections, "server": FEDYOGI.sections["server"]},
    fixed={**FEDAVG_SPLIT.fixed, "server": ("yogi",)},
)
