"""One byte a slope: its sign and seven bits of its logarithm.

Source: Just One Byte (Zelikman et al., arXiv 2306.10015). Departures: the published program makes
510 codes, which are nine bits, and sends the slope that it had before; here

    bit 7: the sign    bits 0-6: e; 0: zero; 1 to 127: exp((e - 64) / 8)    0x80: not finite

so magnitudes run from 3.80e-4 to 2631 in steps of 13 %. A slope between two of them is rounded at
random, up with the probability that makes its mean what it was (also between 0 and the least one):
no bias, and a relative standard deviation of at most 6.25 %, which is little beside the directions'
own noise. Larger slopes become the largest code. The client steps along the rounded slope.
"""

from __future__ import annotations

import math
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.core.keys import Key
from forefed.core.types import Update
from forefed.wire.projections import Coded

NOT_FINITE = 0x80


class OneByte(Coded):
    """One byte a slope: sign and logarithm, rounded at random without a bias."""

    kind: Literal["one_byte"] = "one_byte"

    source: ClassVar[str] = "Just One Byte, arXiv 2306.10015"
    wire_id: ClassVar[int] = 11
    bits: ClassVar[int] = 8

    def code(self, slopes_K: Tensor, key: Key) -> Tensor:
        table = magnitudes().double()
        size_K = slopes_K.abs().nan_to_num(0.0, 0.0).clamp(max=float(table[-1]))
        below_K = (torch.searchsorted(table, size_K, right=True) - 1).clamp(max=len(table) - 2)
        low_K, high_K = table[below_K], table[below_K + 1]
        up_K = key.uniform(slopes_K.shape).double() < (size_K - low_K) / (high_K - low_K)
        codes_K = below_K + up_K
        signs_K = torch.where((slopes_K < 0) & (codes_K > 0), 0x80, 0)
        whole_K = torch.isfinite(slopes_K)
        return torch.where(whole_K, codes_K + signs_K, NOT_FINITE).to(torch.uint8)

    def value(self, codes: Tensor) -> Tensor:
        table = magnitudes()
        signed = torch.cat([table, -table])
        signed[NOT_FINITE] = math.nan
        return signed[codes.long()]

    def counts(self, update: Update) -> dict[str, float]:
        """``saturated``: slopes of the largest code, which may have been larger."""
        largest = magnitudes()[-1]
        count = sum(int((x.abs() == largest).sum()) for x in (update.slopes or {}).values())
        return {"saturated": float(count)} if count else {}


@cache
def magnitudes() -> Tensor:
    """0, and exp((e - 64) / 8) for e from 1 to 127: [128] float32."""
    return torch.tensor([0.0, *(math.exp((e - 64) / 8) for e in range(1, 128))])
