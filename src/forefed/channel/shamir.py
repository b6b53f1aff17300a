"""Shamir's secret sharing of 128-bit numbers.

Source: Shamir, "How to share a secret" (CACM 1979), over the field of the largest prime below
2^128, so that a share is as long as the secret. A holder's share is the polynomial's value at its
place, a small number from 1 on, which keeps the products short.

The library that comes nearest (pycryptodome) works bit by bit in GF(2^128), a thousand times slower
than Python's own integers do here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = 2**128 - 159
SHARE_BYTES = 16


def split(secret: int, coefficients: Sequence[int], holders: int) -> list[int]:
    """Shares at the places 1 to ``holders``; any ``len(coefficients) + 1`` of them give the secret.

    Args:
        secret: in [0, PRIME).
        coefficients: of the powers 1, 2, ... of the polynomial: secret, uniform in [0, PRIME).
    """
    descending = [*reversed(coefficients), secret]
    shares = []
    for x in range(1, holders + 1):
        y = 0
        for c in descending:
            y = (y * x + c) % PRIME
        shares.append(y)
    return shares


def combine(shares: Mapping[int, int]) -> int:
    """The secret from shares by place; fewer than the threshold give an unrelated number."""
    places = tuple(sorted(shares))
    terms = zip(_at_zero(places), places, strict=True)
    return sum(weight * shares[x] for weight, x in terms) % PRIME


@lru_cache(maxsize=4096)
def _at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights for the polynomial's value at 0."""
    weights = []
    for x in places:
        above = below = 1
        for other in places:
            if other != x:
                above *= other
                below *= other - x
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
