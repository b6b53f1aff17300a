"""Frequency oracles: each user answers once, at random, and shares are read from all answers.

A user holds one of k items. Whatever the item, no answer is more than e^epsilon times as likely as
with another one (pure local differential privacy; who collects the answers is not trusted).

* Direct answers (k-ary randomised response, Kairouz et al., arXiv 1407.1338): the item with
  p = e^eps / (e^eps + k - 1), else any other.
* Unary answers (OUE, Wang et al., USENIX Security 2017, section 4.3): a bit for each item, 1 with
  p = 1/2 for the own one, with q = 1 / (e^eps + 1) for the others.

A share is estimated as (c / n - q) / (p - q) from c answers of n that support the item. Direct
answers vary less while k < 3 e^eps + 2 (the same, section 5).

Legend: N users, K items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from forefed.core.keys import Secret

CHUNK = 1 << 22
"""Random words that are held at once."""


@dataclass(frozen=True)
class Shares:
    """Estimated shares [K] among ``users``, their standard deviations [K] and that of an item that
    nobody holds, and how likely as many answers or more would support such an item [K]."""

    values: NDArray[np.float64]
    deviations: NDArray[np.float64]
    deviation: float
    chance: NDArray[np.float64]
    users: int


def shares(items: NDArray[np.int64], k: int, epsilon: float, secret: Secret) -> Shares:
    """What is read from the answers of users who hold these items.

    Args:
        items: [N], each from 0 to k - 1. One user, one item, one answer.
        k: 2 or more. What is no candidate belongs to one that means "another": a user who may not
            answer would tell so.
        secret: the users' chance. (A rehearsal draws for all of them.)

    Raises:
        ValueError: fewer than two items, an item outside, or no positive epsilon.
    """
    n = len(items)
    if k < 2 or not epsilon > 0 or (n and not 0 <= items.min() <= items.max() < k):
        raise ValueError("items from 0 to k - 1 of two or more, and an epsilon above 0")
    if not n:
        return Shares(np.zeros(k), np.full(k, math.inf), math.inf, np.ones(k), 0)
    direct = k < 3 * math.exp(epsilon) + 2
    p = math.exp(epsilon) / (math.exp(epsilon) + k - 1) if direct else 0.5
    q = (1 - p) / (k - 1) if direct else 1 / (math.exp(epsilon) + 1)
    answered = _direct if direct else _unary
    counts = answered(items, k, p, q, secret)
    said = counts / n
    wide = n**0.5 * (p - q)
    spread = np.sqrt(np.maximum(said * (1 - said), q * (1 - q))) / wide
    chance = binom.sf(counts - 1, n, q)
    return Shares((said - q) / (p - q), spread, math.sqrt(q * (1 - q)) / wide, chance, n)


def _direct(
    items: NDArray[np.int64], k: int, p: float, q: float, secret: Secret
) -> NDArray[np.int64]:
    honest = _uniform(secret.fold("own"), len(items)) < p
    other = np.minimum((_uniform(secret.fold("other"), len(items)) * (k - 1)).astype(int), k - 2)
    other += other >= items  # one of those that are not the own one
    return np.bincount(np.where(honest, items, other), minlength=k)


def _unary(
    items: NDArray[np.int64], k: int, p: float, q: float, secret: Secret
) -> NDArray[np.int64]:
    counts = np.zeros(k, dtype=np.int64)
    rows = max(1, CHUNK // k)
    for start in range(0, len(items), rows):
        part = items[start : start + rows]
        drawn_NK = _uniform(secret.fold("bits", start), len(part) * k).reshape(-1, k)
        bound_NK = np.full(drawn_NK.shape, q)
        bound_NK[np.arange(len(part)), part] = p
        counts += (drawn_NK < bound_NK).sum(0)
    return counts


def _uniform(secret: Secret, count: int) -> NDArray[np.float64]:
    """In [0, 1), of 32 bits each."""
    words = secret.blocks(0, -(-count // 4)).reshape(-1)[:count]
    return words.astype(np.float64) * 2.0**-32
