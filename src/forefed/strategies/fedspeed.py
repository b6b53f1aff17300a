"""FedSpeed: Sun et al., ICLR 2023 (arXiv 2302.10429): FedDyn's correction (lambda' is its alpha) on
gradients a little uphill (``engine.kind = "sam"``); with rho = 0 it is FedDyn.

Departures: the gradient is not clipped (published: at 10), and AdamW takes the step (published: SGD
at 0.1, falling by 0.998 a round).
"""

from forefed.strategies.feddyn import FEDDYN
from forefed.strategies.strategy import Strategy

FEDSPEED = Strategy(
    name="fedspeed",
    summary="FedDyn's correction of drift, on sharpness-aware gradients.",
    source="arXiv 2302.10429",
    sections={**FEDDYN.sections, "engine": {"kind": "sam", "rho": 0.1}},
    fixed={**FEDDYN.fixed, "engine": ("sam",)},
)
