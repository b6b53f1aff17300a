"""Bounding what one unit adds to a sum, and Gaussian noise on the sum.

Noise is drawn in float64 from 54 random bits a value (largest value 8.3), not from the table that
directions are drawn from: its tails end at 4.3. Noisy sums are rounded to multiples of about 2^-16
of the noise's deviation, because the last digits of a float tell what was added to what (Mironov,
"On significance of the least significant bits for differential privacy", CCS 2012).

The stream is a function of the secret *and of the sum*: another sum gets other noise, however often
a round is done again, and the same sum gets the same. Two sums with one noise would tell their
difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.keys import Secret
from forefed.core.types import Params

FINE = 16
"""Bits of the noise's deviation that are kept of a sum."""


def bounded(tree: Params, clip: float | None) -> Params:
    """The same in float64, scaled to an l2 norm of at most ``clip`` over all its tensors together
    (None: as long as it is). Zeros, where a number is not finite.
    """
    wide = {n: x.detach().double() for n, x in tree.items()}
    if not all(bool(torch.isfinite(x).all()) for x in wide.values()):
        return {n: torch.zeros_like(x) for n, x in wide.items()}
    norm = trees.norm(wide)
    if clip is None or norm <= clip:
        return wide
    return {n: x * (clip / norm) for n, x in wide.items()}


def gaussian(secret: Secret, shape: Sequence[int]) -> Tensor:
    """Standard normal values, float64: a sign, and the quantile of 53 bits of one tail."""
    size = math.prod(shape)
    words = secret.blocks(0, -(-size // 2)).astype(np.uint64).reshape(-1, 2)[:size]
    whole = words[:, 0] << np.uint64(32) | words[:, 1]
    tail = ((whole >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-54
    sign = np.where(whole & np.uint64(1), 1.0, -1.0)
    values = -torch.special.ndtri(torch.from_numpy(tail)) * torch.from_numpy(sign)
    return values.reshape(tuple(shape))


def noised(total: Params, deviation: float, secret: Secret) -> Params:
    """``total`` with noise of this standard deviation on every element, float64."""
    stream = secret.fold("noise", trees.digest(total))
    grid = 2.0 ** (math.floor(math.log2(deviation)) - FINE)
    noisy = {}
    for name, x in total.items():
        drawn = gaussian(stream.fold(name), x.shape).to(x.device)
        noisy[name] = ((x.double() + deviation * drawn) / grid).round() * grid
    return noisy
