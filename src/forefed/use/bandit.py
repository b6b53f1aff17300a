"""Which rows to label next: a sparse linear bandit whose arms can be pulled once.

Source: Jain, Pal, Choudhary et al., "Sparse linear bandits with blocking constraints" (BSLB and
C-BSLB, arXiv 2410.20041). A row with features x is worth <x, theta> + noise, theta with about k
large entries: some rows are labelled to learn theta (a well-conditioned set of them), then those
that it values most.

    explore   n1 rows, each the one least explained by those chosen so far
    theta     argmin |y - X theta|^2 / (2 n) + lambda |theta|_1, cut to its k largest entries
    exploit   the rows of highest <x, theta>, each once; of several k (C-BSLB) one is followed in
              every step, drawn by what following it has brought

Departure: one exploration for all k, that of the smallest; constants are ours.

Legend: N rows, n labelled ones, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from forefed.core.keys import Key

Vector = NDArray[np.float64]
SPARSITIES = (2, 5, 10)
"""k that are tried."""
PENALTY = 0.15
"""lambda, for features of unit variance."""
RATE = 0.5
"""Of the exponential weights, over rewards of unit variance."""


def exploring(budget: int, k: int = SPARSITIES[0]) -> int:
    """n1: how many of ``budget`` rows are for learning theta."""
    return min(budget // 2, math.ceil(2 * k ** (2 / 3) * budget ** (2 / 3)))


def spread_out(x_ND: Vector, count: int, free: Collection[int]) -> list[int]:
    """``count`` of the free rows, each the one of the largest x^T (1 + sum of former x x^T)^-1 x:
    the one that is least explained by those before it."""
    rows = np.array(sorted(free))
    x = x_ND[rows]
    score, chosen, along = (x * x).sum(1), list[int](), list[Vector]()
    for _ in range(min(count, len(rows))):
        at = int(score.argmax())
        chosen.append(at)
        u = x[at] - sum((v * (v @ x[at]) for v in along), np.zeros(x.shape[1]))
        u = u / math.sqrt(1 + x[at] @ u)
        along.append(u)
        score = score - (x @ u) ** 2
        score[chosen] = -np.inf
    return [int(rows[i]) for i in chosen]


def sparse_fit(x_nD: Vector, y_n: Vector, penalty: float = PENALTY, steps: int = 300) -> Vector:
    """theta [D] by accelerated proximal gradient (FISTA, Beck and Teboulle, 2009). With a penalty
    of 0 and many steps: least squares."""
    n = len(y_n)
    gram, xy = x_nD.T @ x_nD / n, x_nD.T @ y_n / n
    rate = 1 / max(float(np.linalg.norm(gram, 2)), 1e-12)
    theta = momentum = np.zeros(x_nD.shape[1])
    t = 1.0
    for _ in range(steps):
        moved = momentum - rate * (gram @ momentum - xy)
        new = np.sign(moved) * np.maximum(np.abs(moved) - rate * penalty, 0)
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum, theta, t = new + (t - 1) / after * (new - theta), new, after
    return theta


def largest(theta: Vector, k: int) -> Vector:
    """theta with all but its k largest entries 0."""
    kept = np.zeros_like(theta)
    some = np.argsort(-np.abs(theta), kind="stable")[:k]
    kept[some] = theta[some]
    return kept


def pull(
    x_ND: Vector,
    reward: Callable[[int], float],
    budget: int,
    key: Key,
    sparsities: Sequence[int] = SPARSITIES,
) -> list[int]:
    """C-BSLB from its first row to its last: ``budget`` rows in the order in which they are pulled,
    none twice. ``reward``: of a row, asked once for each that is pulled."""
    first = spread_out(x_ND, exploring(budget, min(sparsities)), range(len(x_ND)))
    y_n = np.array([reward(i) for i in first])
    theta = sparse_fit(x_ND[first], y_n)
    values = [x_ND @ largest(theta, k) for k in sparsities]
    weights = np.zeros(len(sparsities))
    pulled, middle, scale = [*first], float(y_n.mean()), max(float(y_n.std()), 1e-12)
    for step in range(budget - len(first)):
        chances = np.exp(weights - weights.max())
        drawn = float(key.fold("follow", step).uniform((1,))) * chances.sum()
        follow = min(int(np.searchsorted(chances.cumsum(), drawn)), len(sparsities) - 1)
        for v in values:
            v[pulled] = -np.inf
        row = int(values[follow].argmax())
        gain = (reward(row) - middle) / scale
        weights[follow] += RATE * gain / (step + 1)
        pulled.append(row)
    return pulled


def next_rows(
    x_ND: Vector, labelled: Sequence[int], y_n: Vector, free: Collection[int], budget: int
) -> list[int]:
    """``budget`` of the free rows to label next.

    Args:
        labelled: rows whose worth is known.
        y_n: their worth.
        free: rows that may be asked for.
    """
    wanted = min(budget, len(free))
    explore = max(0, exploring(len(labelled) + wanted) - len(labelled))
    explore = wanted if len(labelled) < 2 else min(explore, wanted)
    first = spread_out(x_ND, explore, free)
    left = sorted({*free} - {*first})
    if not left or len(first) == wanted:
        return first
    theta = sparse_fit(x_ND[list(labelled)], y_n - y_n.mean())
    value = x_ND[left] @ theta
    best = np.argsort(-value, kind="stable")[: wanted - len(first)]
    return [*first, *(left[i] for i in best)]


def surprises(x_nD: Vector, labels: Sequence[object], ridge: float = 1.0) -> Vector:
    """How far a ridge classifier of all other labelled rows is from each row's label: the squared
    error of its leave-one-out answer, [n]."""
    classes = sorted({str(label) for label in labels})
    one_hot = np.array([[float(str(label) == c) for c in classes] for label in labels])
    x = np.hstack([x_nD, np.ones((len(x_nD), 1))])
    hat = x @ np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T)
    left_out = (one_hot - hat @ one_hot) / np.maximum(1 - hat.diagonal(), 1e-9)[:, None]
    found: Vector = (left_out**2).sum(1)
    return found
