"""Slopes as they arrive and as they travel, of arrays: the codecs ``scalars`` and ``one_byte``.

The bytes are those of ``forefed.wire.scalars`` and ``forefed.wire.one_byte``, which say what they
mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import UserError
from forefed.core.frame import KINDS, pack, pack_arrays, short
from forefed.core.philox import Floats
from forefed.slim.orders import Order

CODECS = {"scalars": 3, "one_byte": 11}
"""Those that there are, with their numbers on the wire."""
KINDS.update(CODECS)

GROUP, NOT_FINITE = "body", 0x80


def check_codec(codec: str) -> None:
    """Raises UserError: one that is none of these."""
    if codec not in CODECS:
        raise UserError(f"codec '{codec}': a client without torch sends {' or '.join(CODECS)}")


def arriving(codec: str, slopes_K: Floats, order: Order, step: int) -> Floats:
    """What the server will hold of a step's slopes, float32; NaN where it hears none."""
    if codec == "scalars":
        return slopes_K
    table = np.concatenate([magnitudes(), -magnitudes()])
    table[NOT_FINITE] = math.nan
    return table[_codes(slopes_K, order, step)]


def encode(
    codec: str, slopes: Floats, order: Order, n_examples: int, metrics: Mapping[str, float]
) -> bytes:
    """The answer to an order: slopes [steps, K] that ``arriving`` has given."""
    meta = {
        "r": order.round,
        "c": order.client,
        "n": n_examples,
        "m": {name: short(value) for name, value in metrics.items()},
    }
    if codec == "scalars":
        return pack(codec, meta, pack_arrays({GROUP: slopes}))
    rows = [_codes(slopes_K, order, step) for step, slopes_K in enumerate(slopes)]
    return pack(codec, {**meta, "s": {GROUP: [*slopes.shape]}}, b"".join(r.tobytes() for r in rows))


def _codes(slopes_K: Floats, order: Order, step: int) -> NDArray[np.uint8]:
    table, slopes = magnitudes().astype(np.float64), slopes_K.astype(np.float64)
    whole = np.isfinite(slopes)
    size = np.minimum(np.where(whole, np.abs(slopes), 0.0), table[-1])
    below = np.minimum(np.searchsorted(table, size, side="right") - 1, len(table) - 2)
    low, high = table[below], table[below + 1]
    drawn = order.key.fold("one_byte", GROUP, step).uniforms_of(slopes.shape)
    codes = below + (drawn.astype(np.float64) < (size - low) / (high - low))
    signs = np.where((slopes < 0) & (codes > 0), 0x80, 0)
    return np.where(whole, codes + signs, NOT_FINITE).astype(np.uint8)


@cache
def magnitudes() -> Floats:
    """0, and exp((e - 64) / 8) for e from 1 to 127: [128] float32."""
    return np.array([0.0, *(math.exp((e - 64) / 8) for e in range(1, 128))], dtype=np.float32)
