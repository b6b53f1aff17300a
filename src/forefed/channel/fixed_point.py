"""Numbers as whole words that can be summed modulo 2^32 or 2^64, and the sums back.

Source: fixed point as in Bonawitz et al. (CCS 2017), section 7. A client's vector is scaled down to
an absolute value of at most ``clip`` *before* it is multiplied by the client's weight, and the
number of fractional bits follows from what all clients together can reach, so no sum overflows and
a client's bound does not depend on its number of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import ProtocolError

WordBits = Literal[32, 64]
Unsigned = NDArray[Any]
"""uint32 or uint64 [m]."""


@dataclass(frozen=True)
class Words:
    """What is summed: ``values`` [m] uint32 or uint64, and ``about`` [a] uint64, for counts."""

    values: Unsigned
    about: Unsigned

    @staticmethod
    def zero(values: int, about: int, bits: WordBits) -> Words:
        dtype = np.uint32 if bits == 32 else np.uint64
        return Words(np.zeros(values, dtype), np.zeros(about, np.uint64))

    def copy(self) -> Words:
        return Words(self.values.copy(), self.about.copy())

    def add(self, other: Words) -> None:
        """In place."""
        np.add(self.values, other.values, out=self.values)
        np.add(self.about, other.about, out=self.about)

    def to_bytes(self) -> bytes:
        """Little-endian, ``about`` first."""
        about, values = (x.astype(x.dtype.newbyteorder("<")) for x in (self.about, self.values))
        return about.tobytes() + values.tobytes()

    def alike(self, other: Words) -> bool:
        """Are they as many words of the same size?"""
        mine, others = (self.about, self.values), (other.about, other.values)
        return all(
            a.shape == b.shape and a.dtype == b.dtype for a, b in zip(mine, others, strict=True)
        )

    @staticmethod
    def of_bytes(data: bytes | memoryview, like: Words) -> Words:
        """The inverse, as many words as ``like`` has.

        Raises:
            ProtocolError: another length.
        """
        if len(data) != like.about.nbytes + like.values.nbytes:
            raise ProtocolError(
                f"{len(data)} bytes of words instead of {like.about.nbytes + like.values.nbytes}"
            )
        about = np.frombuffer(data, "<u8", len(like.about))
        form = f"<u{like.values.itemsize}"
        values = np.frombuffer(data, form, len(like.values), like.about.nbytes)
        return Words(values.astype(like.values.dtype), about.astype(np.uint64))


@dataclass(frozen=True)
class FixedPoint:
    """Numbers of absolute value up to ``clip``, times weights up to ``largest``, as words with
    ``fraction`` binary digits behind the point."""

    clip: float
    largest: int
    fraction: int
    bits: WordBits

    @staticmethod
    def fitting(clients: int, clip: float, largest: int, bits: WordBits) -> FixedPoint:
        """As many fractional digits as ``clients`` vectors leave: the greatest phi with
        clients * largest * clip * 2^phi < 2^(bits - 1)."""
        room = math.log2(clients * largest * clip)
        fraction = math.ceil(bits - 1 - room) - 1
        while clients * largest * clip * 2.0 ** (fraction + 1) < 2.0 ** (bits - 1):
            fraction += 1
        return FixedPoint(clip, largest, fraction, bits)

    def fits(self, clients: int) -> bool:
        """Does no sum of so many vectors overflow?"""
        return clients * self.largest * self.clip * 2.0**self.fraction < 2.0 ** (self.bits - 1)

    def encode(
        self, x: NDArray[np.floating[Any]], weight: int, inward: bool = False
    ) -> tuple[Unsigned, bool]:
        """``weight`` times ``x``, scaled down to the clip where it is larger, as words; and whether
        it was.

        Args:
            inward: round towards zero, which makes no vector longer (not to the nearest).

        Raises:
            ProtocolError: a number that is not finite, or a weight beyond the largest.
        """
        if not 0 <= weight <= self.largest:
            raise ProtocolError(f"a weight of {weight}, at most {self.largest}")
        peak = float(np.max(np.abs(x))) if len(x) else 0.0
        if not math.isfinite(peak):
            raise ProtocolError("a contribution that is not finite cannot be summed")
        clipped = peak > self.clip
        scale = weight * 2.0**self.fraction * (self.clip / peak if clipped else 1.0)
        rounding = np.trunc if inward else np.rint
        whole = rounding(x.astype(np.float64) * scale).astype(np.int64)
        return whole.astype(np.uint32 if self.bits == 32 else np.uint64), clipped

    def decode(self, total: Unsigned) -> NDArray[np.float64]:
        """The weighted sum, float64."""
        signed = total.view(np.int32 if self.bits == 32 else np.int64)
        return signed.astype(np.float64) * 2.0**-self.fraction
