"""The numbers of a key, as arrays: all of ``core.keys`` that needs no torch.

Source: Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
A client without torch (forefed.slim) draws with this what every other party draws: ``Key`` puts the
same arrays into tensors.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

Label = int | str
Distribution = Literal["rademacher", "gauss16"]
Floats = NDArray[np.float32]

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (np.uint64(_M0), np.uint64(_M1))
_WEYL = (np.uint64(_W0), np.uint64(_W1))
_ROUNDS = 10
_MASK32 = np.uint64(_WORD)
_HALF = np.uint64(32)
FEW = 12
"""Blocks for which the cipher in plain Python (4 us each) is faster than its calls of numpy."""
_BLOCKS_AT_ONCE = 1 << 10  # 131,072 signs or 8,192 Gaussian values: what a cache holds
_BLOCKS_IN_MEMORY = 1 << 14  # the cipher's own numbers take ten times its output
GAUSS16_SCALE = 0.99998985927487  # standard deviation of the 65,536 midpoint quantiles


Word = int | NDArray[np.uint64]


def philox(counter_N4: NDArray[np.uint32], key: tuple[Word, Word]) -> NDArray[np.uint32]:
    """Philox4x32-10 of N counters [N, 4] under one key, or under a key for each (two words [N]);
    returns the N blocks of output [N, 4]."""
    first, second = key
    if len(counter_N4) <= FEW and isinstance(first, int) and isinstance(second, int):
        return np.array([_block(c, first, second) for c in counter_N4.tolist()], dtype=np.uint32)
    c0, c1, c2, c3 = (counter_N4[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ k0,
            product1 & _MASK32,
            (product0 >> _HALF) ^ c3 ^ k1,
            product0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def _block(counter: Sequence[int], k0: int, k1: int) -> tuple[int, int, int, int]:
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        product0, product1 = _M0 * c0, _M1 * c2
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & _WORD
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
    return c0, c1, c2, c3


@cache
def gauss16_table() -> NDArray[np.float32]:
    """The 65,536 midpoint quantiles of the standard normal law, scaled to variance 1, float32.

    A gather from a table is exact on every device; logarithms and cosines are not.
    """
    quantile = NormalDist().inv_cdf
    upper = [quantile((i + 0.5) / 65536) / GAUSS16_SCALE for i in range(32768, 65536)]
    half = np.array(upper, dtype=np.float32)
    return np.concatenate([-half[::-1], half])


@dataclass(frozen=True)
class Numbers:
    """What a 64-bit key gives, as arrays (``core.keys.Key``, as tensors). ``value``'s low word is
    Philox key word 0, its high word is word 1."""

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value < 2**64:
            raise ValueError(f"a key is an unsigned 64-bit number, not {self.value}")

    def fold(self, *labels: Label) -> Self:
        """A new key, a function of this one and the labels (order and types matter)."""
        own = self.value.to_bytes(8, "little")
        said = b"".join([b"forefed-key-1", own, *map(encode_label, labels)])
        return type(self)(int.from_bytes(hashlib.sha256(said).digest()[:8], "little"))

    @classmethod
    def direction(cls, tag: str, run: int, round: int, stream: int, name: str) -> Self:
        """The key of one tensor's random directions in one round.

        ``tag`` "C": the stream is a client id (own directions); "G": a group id (shared ones).
        Layout: SHA-256("fgdir1" | tag | run u64 | round u32 | stream u64 | len u16 | name), all
        integers little-endian; the first two u32 of the digest are the Philox key.
        """
        encoded = name.encode()
        message = b"fgdir1" + tag.encode()
        message += struct.pack("<QIQH", run, round, stream, len(encoded)) + encoded
        return cls(int.from_bytes(hashlib.sha256(message).digest()[:8], "little"))

    def blocks(self, start: int, count: int, word2: int = 0, word3: int = 0) -> NDArray[np.uint32]:
        """Output blocks ``start`` to ``start + count`` of the stream (word2, word3): [count, 4]."""
        if count > _BLOCKS_IN_MEMORY:
            found = np.empty((count, 4), dtype=np.uint32)
            for done in range(0, count, _BLOCKS_IN_MEMORY):
                some = min(_BLOCKS_IN_MEMORY, count - done)
                found[done : done + some] = self.blocks(start + done, some, word2, word3)
            return found
        index = np.arange(start, start + count, dtype=np.uint64)
        counter = np.empty((count, 4), dtype=np.uint32)
        counter[:, 0] = index & _MASK32
        counter[:, 1] = index >> _HALF
        counter[:, 2] = word2
        counter[:, 3] = word3
        return philox(counter, (self.value & 0xFFFFFFFF, self.value >> 32))

    def signs_of(self, shape: Sequence[int], step: int = 0, k: int = 0) -> Floats:
        """Fair signs, +1.0 or -1.0, float32. Element e is bit e mod 128 of block e div 128."""
        size = math.prod(shape)
        bits = np.unpackbits(
            self.blocks(0, -(-size // 128), step, k).astype("<u4").view(np.uint8).reshape(-1),
            bitorder="little",
        )[:size]
        return (bits.astype(np.float32) * 2 - 1).reshape(tuple(shape))

    def normals_of(self, shape: Sequence[int], step: int = 0, k: int = 0) -> Floats:
        """Standard normal values from the 16-bit quantile table, float32 ("gauss16").

        Variance 1 to 1e-9, kurtosis 2.9992, largest value 4.325. Element e is halfword e mod 8 of
        block e div 8.
        """
        size = math.prod(shape)
        return gauss16_table()[self._halfwords(size, step, k)].reshape(tuple(shape))

    def directions_of(
        self, law: Distribution, shape: Sequence[int], step: int, ks: Sequence[int]
    ) -> Floats:
        """Directions ``ks``, stacked: [len(ks), *shape]. The cipher's overhead, which is what small
        tensors cost, is paid once for many."""
        size = math.prod(shape)
        values = np.empty((len(ks), size), dtype=np.float32)
        blocks = -(-size // (128 if law == "rademacher" else 8))
        at_once = max(1, _BLOCKS_AT_ONCE // max(1, blocks))
        for start in range(0, len(ks), at_once):
            some = np.array(ks[start : start + at_once], dtype=np.uint32)
            counter = np.empty((len(some), blocks, 4), dtype=np.uint32)
            counter[:, :, 0] = np.arange(blocks)
            counter[:, :, 1] = 0  # a tensor has fewer than 2**32 blocks
            counter[:, :, 2] = step
            counter[:, :, 3] = some[:, None]
            words = philox(counter.reshape(-1, 4), (self.value & 0xFFFFFFFF, self.value >> 32))
            fill(values[start : start + at_once], law, words.reshape(len(some), 4 * blocks))
        return values.reshape(len(ks), *shape)

    def uniforms_of(self, shape: Sequence[int], offset: int = 0) -> Floats:
        """Values in [0, 1): multiples of 2**-24, exact in float32; elements from ``offset`` on.

        Element e is the upper 24 bits of word e mod 4 of block e div 4.
        """
        size = math.prod(shape)
        first = offset // 4
        words = self.blocks(first, -(-(offset + size) // 4) - first).reshape(-1)
        words = words[offset - 4 * first :][:size]
        values = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
        return values.reshape(tuple(shape))

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """``count`` integers in [0, below), by the upper half of a 64-bit product (bias < 2**-32
        for every ``below`` up to 2**31)."""
        if not 0 < below <= 2**31:
            raise ValueError(f"the bound of a random integer lies in 1..2**31, not {below}")
        words = self.blocks(0, -(-count // 4)).reshape(-1)[:count].astype(np.uint64)
        return ((words * np.uint64(below)) >> _HALF).astype(np.int64)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A random order of 0..n-1: positions sorted by 64-bit random words."""
        words = self.blocks(0, -(-n // 2)).reshape(-1, 2)[:n]
        keys = words[:, 0].astype(np.uint64) << _HALF
        keys |= words[:, 1]
        return np.argsort(keys, kind="stable")

    def choice(self, n: int, count: int) -> list[int]:
        """``count`` distinct numbers of 0..n-1, in ascending order, in time O(count) for any n.

        Floyd's sampling without replacement: a million clients cost what the cohort costs.
        """
        if not 0 <= count <= n:
            raise ValueError(f"cannot choose {count} distinct numbers out of {n}")
        words = self.blocks(0, -(-count // 4)).reshape(-1)[:count]
        chosen: set[int] = set()
        for word, last in zip(words.tolist(), range(n - count, n), strict=True):
            candidate = (word * (last + 1)) >> 32
            chosen.add(last if candidate in chosen else candidate)
        return sorted(chosen)

    def _halfwords(self, size: int, step: int, k: int) -> NDArray[np.uint16]:
        blocks = self.blocks(0, -(-size // 8), step, k).astype("<u4")
        return blocks.view("<u2").reshape(-1)[:size]


def encode_label(label: Label) -> bytes:
    if isinstance(label, str):
        encoded = label.encode()
        return b"s" + struct.pack("<I", len(encoded)) + encoded
    return b"i" + struct.pack("<q", label)


def fill(values: NDArray[np.float32], law: Distribution, words: NDArray[np.uint32]) -> None:
    """Values [K, D] from the blocks that hold them [K, words]."""
    rows, size = words.astype("<u4"), values.shape[1]
    if law == "rademacher":
        bits = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
        np.multiply(bits[:, :size], np.float32(2), out=values)
        values -= 1
    else:
        values[:] = gauss16_table()[rows.view("<u2")[:, :size]]


def together_of(
    keys: Sequence[Numbers],
    sizes: Sequence[int],
    law: Distribution,
    step: int | Sequence[int],
    ks: Sequence[int],
) -> Floats:
    """``directions_of`` of several tensors, side by side: [len(ks), sum of sizes]. ``step``: of all
    of ``ks``, or of each.

    For small tensors: the cipher runs once for all, so that its overhead, which is what they cost,
    is paid once.
    """
    per = 128 if law == "rademacher" else 8
    blocks = [-(-size // per) for size in sizes]
    ends = np.cumsum(blocks)
    counter = np.zeros((len(ks), int(ends[-1]), 4), dtype=np.uint32)
    counter[:, :, 0] = np.concatenate([np.arange(n) for n in blocks])
    counter[:, :, 2] = np.array(step, dtype=np.uint32).reshape(-1, 1)
    counter[:, :, 3] = np.array(ks, dtype=np.uint32)[:, None]
    words = np.array([(k.value & 0xFFFFFFFF, k.value >> 32) for k in keys], dtype=np.uint64)
    each = np.tile(np.repeat(words, blocks, axis=0), (len(ks), 1))
    found = philox(counter.reshape(-1, 4), (each[:, 0], each[:, 1])).reshape(len(ks), -1, 4)
    values = np.empty((len(ks), sum(sizes)), dtype=np.float32)
    if len(set(sizes)) == 1:
        rows = len(ks) * len(sizes)
        fill(values.reshape(rows, sizes[0]), law, found.reshape(rows, -1))
        return values
    at = 0
    for size, n, end in zip(sizes, blocks, ends, strict=True):
        part = np.ascontiguousarray(found[:, end - n : end]).reshape(len(ks), -1)
        fill(values[:, at : at + size], law, part)
        at += size
    return values
