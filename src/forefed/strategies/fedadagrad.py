"""FedAdagrad: FedAdam whose v is the sum of all squared changes, so that steps shrink over the
rounds, and m the change itself (Reddi et al., arXiv 2003.00295, Algorithm 2).

Departures as in ``strategies/fedadam.py``.
"""

from forefed.strategies.fedadam import FEDADAM
from forefed.strategies.strategy import Strategy

FEDADAGRAD = Strategy(
    name="fedadagrad",
    summary="FedAvg with an Adagrad step at the server.",
    source="arXiv 2003.00295, Algorithm 2",
    sections={**FEDADAM.sections, "server": {**FEDADAM.sections["server"], "kind": "adagrad"}},
    fixed={**FEDADAM.fixed, "server": ("adagrad",)},
)
