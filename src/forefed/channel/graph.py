"""Who shares masks with whom: all pairs in a small group, a random graph in a large one.

Source: Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead" (CCS 2020),
section 3. Each client agrees on masks with k others only. k is the smallest for which, with the
given shares of colluding and lost clients,

    a client with a threshold or more of colluding neighbours, or with none left that is neither
    colluding nor lost, has a chance of at most 2^-40 in a round, and
    a round fails, as some client's neighbours lost more than the threshold allows, once in 1,000.

Departure: clients lie in random order on a ring and are joined at random distances (published: at
the k/2 shortest). A client's neighbours are then a uniform sample of the others all the same, so
the chances are hypergeometric, and no gap on the ring cuts the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

from forefed.core.keys import Key

SECURITY_BITS, FAILURE_BITS = 40, 10
SMALL = 32
"""Clients up to which everybody is everybody's neighbour."""


def threshold_of(holders: int) -> int:
    """Shares that give a secret which so many hold: two thirds of them."""
    return -(-2 * holders // 3)


@cache
def degree(clients: int, colluding: float, lost: float) -> int:
    """Neighbours of a client in a group of this size."""
    if clients <= SMALL:
        return clients - 1
    bad, gone = math.floor(colluding * clients), math.floor(lost * clients)
    others = clients - 1
    for k in range(4, others, 2):
        threshold = threshold_of(k + 1)
        exposed = clients * at_least(threshold, others, bad, k)
        isolated = clients * at_least(k, others, min(others, bad + gone), k)
        failed = clients * at_least(k + 2 - threshold, others, gone, k)
        if max(exposed, isolated) <= 2.0**-SECURITY_BITS and failed <= 2.0**-FAILURE_BITS:
            return k
    return others


def at_least(count: int, others: int, marked: int, k: int) -> float:
    """The chance that of k drawn from the others, so many of which are marked, ``count`` are."""
    hits = range(count, min(k, marked) + 1)
    ways = sum(math.comb(marked, i) * math.comb(others - marked, k - i) for i in hits)
    return float(Fraction(ways, math.comb(others, k)))


def neighbours(clients: Sequence[int], k: int, key: Key) -> dict[int, tuple[int, ...]]:
    """k neighbours of every client, in ascending order; mutual.

    Args:
        k: even, or one less than the clients: then all pairs.
        key: decides who lies where.
    """
    n = len(clients)
    if k >= n - 1:
        return {c: tuple(sorted(set(clients) - {c})) for c in clients}
    ring = [clients[i] for i in key.fold("ring").permutation(n)]
    distances = [d + 1 for d in key.fold("distances").choice((n - 1) // 2, k // 2)]
    found: dict[int, tuple[int, ...]] = {}
    for place, client in enumerate(ring):
        there = [ring[(place + d) % n] for d in distances]
        there += [ring[place - d] for d in distances]
        found[client] = tuple(sorted(there))
    return found
