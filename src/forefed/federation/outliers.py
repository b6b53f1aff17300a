"""Which contributions of a round stand out: not finite, far too long, or against the others.

The bounds are robust (medians), so that one contribution cannot move them, and wide, so that
clients with few classes do not trip them: their updates differ in length by two or three times, and
point elsewhere but not backwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from forefed.core.types import Json

ENOUGH = 4
"""Contributions below which none is called outlying: of two, either could be the odd one."""
LONG = 5.0
"""Times the median length."""
AGAINST = -0.5
"""Cosine to the aggregate. It is only told of a minority: where one contribution outweighs all
others, it is they that seem to point backwards."""


def outlying(contributions: Sequence[Json]) -> dict[int, str]:
    """What is odd, by client. ``contributions``: {client, norm, cosine}; null: not finite."""
    found: dict[int, str] = {}
    lengths: dict[int, float] = {}
    for one in contributions:
        norm = one.get("norm")
        if not isinstance(norm, int | float) or not math.isfinite(norm):
            found[one["client"]] = "is not finite"
        else:
            lengths[one["client"]] = norm
    if len(lengths) < ENOUGH:
        return found
    middle = median(lengths.values())
    for client, norm in lengths.items():
        if middle > 0 and norm > LONG * middle:
            found[client] = f"is {norm / middle:.0f} times as long as the median one"
    backwards = {
        one["client"]: one["cosine"]
        for one in contributions
        if one["client"] not in found and (one.get("cosine") or 0.0) < AGAINST
    }
    if 4 * len(backwards) <= len(lengths):
        for client, cosine in backwards.items():
            found[client] = f"points against the others (cosine {cosine:.2f} to the aggregate)"
    return found
