"""A client's local steps in arrays: the batches, directions, slopes and steps of the torch client.

The same numbers as ``local/training.py`` with finite differences and plain gradient steps: batches
and directions from the same keys, sums in float64 in the order of k, products and additions apart.
Losses come from another program, so slopes agree to its rounding; given equal slopes, the
parameters between two steps are equal bit for bit.

Legend: K directions, B rows of a batch, S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forefed.core.philox import Floats, Numbers
from forefed.slim.codecs import arriving
from forefed.slim.orders import Arrays, Order
from forefed.slim.settings import Settings

Indices = NDArray[np.int64]
Losses = Callable[[Arrays, Indices], float]
"""The mean loss of some rows at these parameters."""

TOKENS = 512
"""Of a micro-batch, as ``gradients.engine.AUTO_TOKENS``."""
WARM_UP = 8
"""Slopes seen before the first one is clamped, as ``directions.clamp.WARM_UP``."""


def batches(settings: Settings, lengths: Indices, key: Numbers) -> list[Indices]:
    """The rows of every local step (``local.samplers.Shuffled``)."""
    count, plan = len(lengths), list[Indices]()
    size = settings.batch_size or count
    for epoch in range(settings.epochs if count else 0):
        if settings.max_steps is not None and len(plan) >= settings.max_steps:
            break
        shuffled = key.fold("data", epoch).permutation(count)
        if settings.group_by_length:
            shuffled = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        parts = [shuffled[i : i + size] for i in range(0, count, size)]
        plan += [parts[i] for i in key.fold("batches", epoch).permutation(len(parts))]
    return plan[: settings.max_steps]


@dataclass(frozen=True)
class Directions:
    """K random directions of every step (``directions.sets.RandomDirections``)."""

    settings: Settings
    order: Order

    def of(self, name: str, step: int) -> Floats:
        """Those over one parameter: [K, ...]."""
        own = ("C", self.order.run, self.order.round, self.order.client)
        shared = ("G", self.order.run, self.order.round, 0)
        key = Numbers.direction(*(shared if self.settings.shared else own), name)
        shape, ks = self.order.params[name].shape, range(self.settings.k)
        return key.directions_of(self.settings.distribution, shape, step, ks)


@dataclass
class Clamp:
    """Slopes beyond a multiple of the running median of their sizes (``directions.clamp``)."""

    factor: float
    seen: list[float] = field(default_factory=list)
    count: int = 0

    def __call__(self, slopes_K: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.factor:
            return slopes_K
        clamped = slopes_K.copy()
        for k, size in enumerate(np.abs(slopes_K).tolist()):
            if not math.isfinite(size):
                continue
            if len(self.seen) >= WARM_UP:
                bound = self.factor * sorted(self.seen)[len(self.seen) // 2]
                if size > bound > 0:
                    clamped[k] = math.copysign(bound, slopes_K[k])
                    self.count += 1
            self.seen.append(size)
        return clamped


@dataclass(frozen=True)
class Answer:
    """What a round came to: slopes [steps, K] as they arrive, and plain numbers."""

    slopes: Floats
    n_examples: int
    metrics: dict[str, float]


def train(settings: Settings, order: Order, lengths: Indices, losses: Losses) -> Answer:
    """One client's round. ``lengths``: tokens of its rows."""
    directions, clamp = Directions(settings, order), Clamp(settings.clamp)
    params = {n: order.params[n] for n in order.assigned}
    fixed = {n: x for n, x in order.params.items() if n not in params}
    sent, seen, skipped, found = list[Floats](), 0, 0, list[float]()
    sides = settings.eps, -settings.eps
    for step, rows in enumerate(batches(settings, lengths, order.key)):
        along = {n: directions.of(n, step) for n in params}
        value, slopes_K = 0.0, np.zeros(settings.k)
        for part in micro_batches(settings, rows, lengths):
            share = len(part) / len(rows)
            either = [
                [losses({**fixed, **shifted(params, along, k, by)}, part) for by in sides]
                for k in range(settings.k)
            ]
            above, below = np.array(either).T
            value += share * float(np.mean((above + below) / 2))
            slopes_K += share * ((above - below) / (2 * settings.eps))
        slopes = arriving(settings.codec, clamp(slopes_K).astype(np.float32), order, step)
        after = stepped(settings, params, along, slopes)
        skipped += after is None
        params, seen = params if after is None else after, seen + len(rows)
        sent.append(slopes)
        found += [value] if math.isfinite(value) else []
    metrics = {
        "loss": sum(found) / len(found) if found else math.nan,
        "steps": float(len(sent)),
        "skipped": float(skipped),
        "forwards": 2.0 * settings.k * seen,
        "clamped": float(clamp.count),
    }
    stacked = np.stack(sent) if sent else np.zeros((0, 0), dtype=np.float32)
    return Answer(stacked, min(len(lengths), seen), metrics)


def micro_batches(settings: Settings, rows: Indices, lengths: Indices) -> Iterator[Indices]:
    at_once = settings.micro_batch
    if at_once == 0:
        at_once = max(1, TOKENS // int(lengths[rows].max()))
    at_once = len(rows) if at_once < 0 else at_once
    for start in range(0, len(rows), at_once):
        yield rows[start : start + at_once]


def shifted(params: Arrays, along: Arrays, k: int, by: float) -> Arrays:
    return {n: x + np.float32(by) * along[n][k] for n, x in params.items()}


def stepped(settings: Settings, params: Arrays, along: Arrays, slopes_K: Floats) -> Arrays | None:
    """The parameters after a plain step along what the slopes stand for; None: it rests."""
    finite = [k for k in range(settings.k) if math.isfinite(slopes_K[k])]
    moved: Arrays = {}
    for name, x in params.items():
        total = np.zeros(x.shape)
        for k in finite:
            total = total + np.float64(slopes_K[k]) * along[name][k].astype(np.float64)
        estimate = (total / max(1, len(finite))).astype(np.float32)
        rate = settings.lr
        if settings.head_lr is not None and name in settings.head:
            rate = settings.head_lr
        moved[name] = x - np.float32(rate) * estimate
        if not np.isfinite(estimate).all():
            return None
    return moved if finite else None
