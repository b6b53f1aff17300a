"""HiSo: "Hessian-informed zeroth-order federated learning with scalar-only communication" (arXiv
2506.02370): DeComFL along directions shaped by a diagonal curvature H, which every party makes of
the same averaged slopes.

    z = H^-1/2 u,  slope s = <gradient, z>,  w <- w - lr s z        (on average lr H^-1 gradient)
    H <- (1 - nu) H + nu (s z)^2, from the last local step          (modifiers)

The square of an estimate along K directions says little of one element's gradient while K is
small: E[(s z)_i^2] = (|a|^2 + (K + 1) a_i^2) / (K H_i) with a = H^-1/2 gradient. Hence more
directions here than in DeComFL (published: one), and the departures of ``strategies/decomfl.py``.
"""

from forefed.strategies.decomfl import DECOMFL
from forefed.strategies.strategy import Strategy

HISO = Strategy(
    name="hiso",
    summary="DeComFL along directions shaped by a curvature that all rebuild from the slopes.",
    source="arXiv 2506.02370",
    sections={
        **DECOMFL.sections,
        "directions": {
            **DECOMFL.sections["directions"],
            "k": 32,
            "distribution": "gauss16",
            "head_distribution": "gauss16",
        },
        "modifiers": [{"kind": "curvature"}],
    },
    fixed={**DECOMFL.fixed, "modifiers": ("curvature",)},
)
