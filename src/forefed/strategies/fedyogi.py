"""FedYogi: FedAdam whose v moves by (1 - beta2) times the squared change, up or down, so that it
forgets a large change slowly (Reddi et al., arXiv 2003.00295, Algorithm 2).

Departures as in ``strategies/fedadam.py``.
"""

from forefed.strategies.fedadam import FEDADAM
from forefed.strategies.strategy import Strategy

FEDYOGI = Strategy(
    name="fedyogi",
    summary="FedAvg with a Yogi step at the server.",
    source="arXiv 2003.00295, Algorithm 2",
    sections={**FEDADAM.sections, "server": {**FEDADAM.sections["server"], "kind": "yogi"}},
    fixed={**FEDADAM.fixed, "server": ("yogi",)},
)
