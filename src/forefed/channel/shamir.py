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


def extend(secret: int, first: Sequence[int], holders: int) -> list[int]:
    """The shares at the places after the first ones, up to ``holders``: of the polynomial that has
    the secret at 0 and these shares at the places 1, 2, ...

    Where the first shares are uniform in [0, PRIME), so is the polynomial among those of its degree
    with this secret, as if its coefficients had been drawn. Any ``len(first) + 1`` shares give the
    secret.
    """
    values = [secret, *first]
    return [
        sum(w * y for w, y in zip(weights, values, strict=True)) % PRIME
        for weights in _beyond(len(first), holders)
    ]


def combine(shares: Mapping[int, int]) -> int:
    """The secret from shares by place; fewer than the threshold give an unrelated number."""
    places = tuple(sorted(shares))
    terms = zip(_at_zero(places), places, strict=True)
    return sum(weight * shares[x] for weight, x in terms) % PRIME


@lru_cache(maxsize=256)
def _beyond(first: int, holders: int) -> tuple[tuple[int, ...], ...]:
    """Lagrange's weights of the places 0 to ``first`` for each place after them."""
    nodes = range(first + 1)
    return tuple(_weights(tuple(nodes), x) for x in range(first + 1, holders + 1))


@lru_cache(maxsize=4096)
def _at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    return _weights(places, 0)


def _weights(places: tuple[int, ...], x: int) -> tuple[int, ...]:
    """Lagrange's weights of the values at these places for the one at ``x``."""
    weights = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above *= x - other
                below *= place - other
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
