"""How noisy an estimate is: v = E|estimate - gradient|^2 / |gradient|^2.

The closed forms of gradients/directions.py, which a test measures.
"""

from __future__ import annotations

from forefed.core.keys import Law
from forefed.gradients.engine import GradientEngine, SlopeEngine


def noise_of(engine: GradientEngine, elements: int) -> float:
    """v of an estimate of ``elements`` elements; 0 for an exact engine."""
    if isinstance(engine, SlopeEngine) and engine.directions != "all":
        return noise_along(engine.directions, elements, engine.law)
    return 0.0


def noise_along(k: int, elements: int, law: Law) -> float:
    """(d - 1) / K for K random signs over d elements, (d + 1) / K for Gaussian values."""
    if not elements:
        return 0.0
    return (elements + (1 if law == "gauss16" else -1)) / k
