"""95 % intervals of what is measured on a sample of test examples.

They cover the choice of the examples, not the luck of a run (its seed, its clients). Both need sums
over the examples only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 1.959963984540054  # of the normal distribution at 97.5 %
Ends = tuple[float, float]


def wilson(right: float, n: float) -> Ends:
    """Of a share, ``right`` of ``n``; 0 to 1 where n is 0.

    For a mean of numbers from 0 to 1 it is wide enough: none spread more than noughts and ones.
    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927): stays within 0 and 1, and has a width at
    both ends.
    """
    if n <= 0:
        return 0.0, 1.0
    p, z2 = right / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Ratio:
    """Sums over n examples of a, b and their products, of which a / b is of interest."""

    n: float
    a: float
    b: float
    aa: float
    ab: float
    bb: float

    def interval(self) -> Ends | None:
        """None where the ratio means nothing. Source: Cochran 1977, section 6.4 (large samples)."""
        if self.n < 2 or self.b <= 0:
            return None
        r = self.a / self.b
        spread = max(self.aa - 2 * r * self.ab + r * r * self.bb, 0.0)
        half = Z * math.sqrt(spread * self.n / (self.n - 1)) / self.b
        return r - half, r + half
