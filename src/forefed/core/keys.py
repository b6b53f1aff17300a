"""Counter-based randomness: every random number is a function of a key.

Source: Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
Only 32-bit integer arithmetic, one SHA-256 and one table of float32 are used, so the same key gives
the same values on every operating system, device and dtype, whatever the versions of the libraries.
No global generator exists anywhere in this package.

A ``Key`` is public: every party of a run can draw what it draws. What nobody else may predict
(noise that protects, masks) is drawn from a ``Secret``, which never travels.

A ``Key`` is folded with labels (round, client, a purpose) into new, unrelated keys; it is never
"used up", so the same call on the same key gives the same values again.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forefed.core.philox import (
    GAUSS16_SCALE,
    Distribution,
    Label,
    Numbers,
    encode_label,
    gauss16_table,
    philox,
    together_of,
)

__all__ = [
    "GAUSS16_SCALE",
    "Distribution",
    "Key",
    "Label",
    "Secret",
    "directions_together",
    "gauss16_table",
    "philox",
]


@dataclass(frozen=True)
class Key(Numbers):
    """A 64-bit key. ``value``'s low word is Philox key word 0, its high word is word 1."""

    def rademacher(self, shape: Sequence[int], step: int = 0, k: int = 0) -> Tensor:
        """Fair signs, +1.0 or -1.0, float32. Element e is bit e mod 128 of block e div 128."""
        return torch.from_numpy(self.signs_of(shape, step, k))

    def normal(self, shape: Sequence[int], step: int = 0, k: int = 0) -> Tensor:
        """Standard normal values from the 16-bit quantile table, float32 ("gauss16").

        Variance 1 to 1e-9, kurtosis 2.9992, largest value 4.325. Element e is halfword e mod 8 of
        block e div 8.
        """
        return torch.from_numpy(self.normals_of(shape, step, k))

    def direction_values(
        self, law: Distribution, shape: Sequence[int], step: int = 0, k: int = 0
    ) -> Tensor:
        """One direction of the named law: E[v v^T] = I for both."""
        return (
            self.rademacher(shape, step, k) if law == "rademacher" else self.normal(shape, step, k)
        )

    def directions(
        self, law: Distribution, shape: Sequence[int], step: int, ks: Sequence[int]
    ) -> Tensor:
        """Directions ``ks``, stacked: [len(ks), *shape]. The cipher's overhead, which is what small
        tensors cost, is paid once for many."""
        return torch.from_numpy(self.directions_of(law, shape, step, ks))

    def uniform(self, shape: Sequence[int], offset: int = 0) -> Tensor:
        """Values in [0, 1): multiples of 2**-24, exact in float32; elements from ``offset`` on.

        Element e is the upper 24 bits of word e mod 4 of block e div 4.
        """
        return torch.from_numpy(self.uniforms_of(shape, offset))


@dataclass(frozen=True, repr=False)
class Secret(Key):
    """256 bits that one party keeps for itself. Draws as a ``Key`` does, but from SHAKE-256
    (FIPS 202): whoever knows the public key, the settings and every message learns nothing of
    it, and what was drawn for one purpose says nothing about another.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.value < 2**256:
            raise ValueError("a secret is an unsigned 256-bit number")

    def __repr__(self) -> str:
        return "Secret(...)"  # it does not get into a log

    @staticmethod
    def new() -> Secret:
        """From the operating system's randomness."""
        return Secret.of_bytes(secrets.token_bytes(32))

    @staticmethod
    def rehearsed(seed: int) -> Secret:
        """That of a rehearsal, where one process plays all parties and a run repeats itself."""
        return Secret(0).fold("rehearsal", str(seed))

    @staticmethod
    def of_bytes(data: bytes) -> Secret:
        """From 32 bytes, as ``bytes`` gives them."""
        if len(data) != 32:
            raise ValueError(f"a secret has 32 bytes, not {len(data)}")
        return Secret(int.from_bytes(data, "little"))

    @property
    def bytes(self) -> bytes:
        return self.value.to_bytes(32, "little")

    def fold(self, *labels: Label) -> Secret:
        """A new secret; this one does not follow from it."""
        said = b"".join([b"forefed-secret-1", self.bytes, *map(encode_label, labels)])
        return Secret(int.from_bytes(hashlib.sha256(said).digest(), "little"))

    def blocks(self, start: int, count: int, word2: int = 0, word3: int = 0) -> NDArray[np.uint32]:
        """As for a key: [count, 4]."""
        stream = hashlib.shake_256(b"forefed-blocks-1" + self.bytes)
        stream.update(struct.pack("<II", word2, word3))
        words = np.frombuffer(stream.digest(16 * (start + count)), dtype="<u4", offset=16 * start)
        return words.astype(np.uint32).reshape(count, 4)

    def directions(
        self, law: Distribution, shape: Sequence[int], step: int, ks: Sequence[int]
    ) -> Tensor:
        """As for a key: [len(ks), *shape]."""
        return torch.stack([self.direction_values(law, shape, step, k) for k in ks])


def directions_together(
    keys: Sequence[Key],
    sizes: Sequence[int],
    law: Distribution,
    step: int | Sequence[int],
    ks: Sequence[int],
) -> Tensor:
    """``Key.directions`` of several tensors, side by side: [len(ks), sum of sizes]. ``step``: of
    all of ``ks``, or of each.

    For small tensors: the cipher runs once for all, so that its overhead, which is what they cost,
    is paid once.
    """
    return torch.from_numpy(together_of(keys, sizes, law, step, ks))
