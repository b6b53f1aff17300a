"""A bag of a text's words, read from its tokens alone: what tells a class beside the features.

A frozen encoder says what a text means and forgets its wording; a bag of words knows nothing else.
The words are the model's own tokens and pairs of neighbours, hashed by a fixed function; the most
frequent of them are kept (``Bag``). A row's vector has 1 + ln(count) times the word's inverse
document frequency (Salton and Buckley, 1988), at length 1, in whole units of ``STEP``: a function
of the row alone, to the bit, so that sums of it do not depend on who holds which row.

Axes: B rows, T tokens of all rows, E entries (a word of a row), F words kept, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from forefed.core.errors import ProtocolError
from forefed.core.types import Batch, Params

WORDS = "words"
"""Owner of a run's words in its state, and what they are called where they travel."""
BUCKETS = 2**18
"""Of the hash. Texts of a thousand rows have fewer different words that occur twice."""
STEP = 2.0**-10
_MOST = 4096
HASH_SHIFT = 64 - (BUCKETS.bit_length() - 1)
"""Bits of a hash below those that name its bucket."""
LOGS = [0.0, *(1 + math.log(k) for k in range(1, _MOST + 1))]
_ONE, _TWO, _PAIR = -7046029254386353131, -4417276706812531889, 1442695040888963407
"""Odd multipliers (two's complement of 64 bits) and what tells a pair from a token."""


def occurrences(row_T: Tensor, id_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every different word of every row, sorted: its row, its bucket, how often it is there.

    Args:
        row_T: row of every token, ascending.
        id_T: ids of the tokens, in order.
    """
    row_T, id_T = row_T.long().cpu(), id_T.long().cpu()
    one_T, two_P = hashes(id_T)
    follows = row_T[1:] == row_T[:-1]
    rows = torch.cat([row_T, row_T[1:][follows]])
    buckets = (torch.cat([one_T, two_P[follows]]) >> HASH_SHIFT) & (BUCKETS - 1)
    keys_E, counts_E = (rows * BUCKETS + buckets).unique(return_counts=True)
    return keys_E // BUCKETS, keys_E % BUCKETS, counts_E


def hashes(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of tokens [..., S], int64: each one's hash [..., S], and every two neighbours' [..., S - 1].
    The bucket is a hash's uppermost bits."""
    one = ids * _ONE
    return one, (one[..., :-1] + ids[..., 1:] * _TWO + _PAIR) * _ONE


@dataclass(frozen=True)
class Bag:
    """The words that are kept: their buckets [F] int32, ascending, and weights ``idf`` [F]."""

    buckets: Tensor
    idf: Tensor

    def __len__(self) -> int:
        return len(self.buckets)

    @cached_property
    def _slots(self) -> Tensor:
        slots = torch.full((BUCKETS,), -1, dtype=torch.int64)
        slots[self.buckets.long()] = torch.arange(len(self))
        return slots

    def entries(self, row_T: Tensor, id_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens (see ``occurrences``): row [E], word [E], value [E] in units of STEP."""
        row_E, bucket_E, count_E = occurrences(row_T, id_T)
        slot_E = self._slots[bucket_E]
        kept = slot_E >= 0
        row_E, slot_E, count_E = row_E[kept], slot_E[kept], count_E[kept]
        logs = torch.tensor(LOGS, dtype=torch.float64)[count_E.clamp_max(_MOST)]
        value_E = logs * self.idf.double()[slot_E]
        rows = int(row_T.max()) + 1 if len(row_T) else 0
        squares = torch.zeros(rows, dtype=torch.float64).index_add_(0, row_E, value_E**2)
        value_E = value_E / squares.sqrt()[row_E]
        return row_E, slot_E, (value_E / STEP).round().long()


@dataclass(frozen=True)
class Words:
    """A bag with what each word says of each class: ``weight`` [F, C] float32.

    Logits of a model become ``times`` them, ``shift`` [C] (None: nothing) and what the words add.
    """

    bag: Bag
    weight: Tensor
    times: float = 1.0
    shift: Tensor | None = None

    def logits(self, row_T: Tensor, id_T: Tensor, rows: int) -> Tensor:
        """What these rows' words add to the logits, [rows, C] float64 on the CPU."""
        row_E, slot_E, value_E = self.bag.entries(row_T, id_T)
        said = (STEP * value_E.double())[:, None] * self.weight.double()[slot_E]
        nothing = torch.zeros(rows, self.weight.shape[1], dtype=torch.float64)
        return nothing.index_add_(0, row_E, said)

    def added(self, logits: Tensor, row_T: Tensor, id_T: Tensor) -> Tensor:
        """These logits of a model [B, C] with what the words of the same rows say."""
        added = self.logits(row_T, id_T, len(logits))
        if self.shift is not None:
            added = added + self.shift.to(added)
        return self.times * logits + added.to(logits)

    def packed(self) -> Params:
        times = torch.tensor(self.times, dtype=torch.float64)
        own = {"buckets": self.bag.buckets, "idf": self.bag.idf, "weight": self.weight}
        shift = {} if self.shift is None else {"shift": self.shift}
        return {**own, "times": times, **shift}

    def beside(self, batch: Batch, row_T: Tensor, id_T: Tensor) -> Batch:
        """A batch of these rows, whose loss is one of logits with what their words say."""
        added = self.logits(row_T, id_T, batch.size).float()
        return replace(batch, added=added, times=self.times)

    @staticmethod
    def told(tensors: Params) -> Words | None:
        """Of what came over the wire; None: there are none.

        Raises:
            ProtocolError: words that are none.
        """
        if not tensors:
            return None
        try:
            words = Words.unpacked(tensors)
            there, idf = words.bag.buckets, words.bag.idf
            fits = there.dtype == torch.int32 and there.dim() == 1 and there.shape == idf.shape
            fits = fits and not bool((there < 0).any() | (there >= BUCKETS).any())
            fits = fits and words.weight.dim() == 2 and len(words.weight) == len(there)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ProtocolError(f"these words are none ({error})") from None
        if not fits:
            raise ProtocolError("these words are none")
        return words

    @staticmethod
    def unpacked(tensors: Params) -> Words:
        bag = Bag(tensors["buckets"], tensors["idf"])
        times, shift = float(tensors["times"]), tensors.get("shift")
        return Words(bag, tensors["weight"], times, shift)


def tokens_of(ids_BS: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor]:
    """Row and id of every token of a padded batch, as ``occurrences`` takes them."""
    there_BS = torch.ones_like(ids_BS) if mask_BS is None else mask_BS
    row_T, at_T = there_BS.nonzero(as_tuple=True)
    return row_T, ids_BS[row_T, at_T]


def beginnings(
    ids_BS: Tensor, mask_BS: Tensor | None, reads: int, end: int | None
) -> tuple[Tensor, Tensor | None]:
    """The first ``reads`` tokens of every row; where a longer one is cut, ``end`` (if it ended so)
    is the last of them, as a tokeniser cuts it."""
    if ids_BS.shape[1] <= reads:
        return ids_BS, mask_BS
    there_BS = torch.ones_like(ids_BS) if mask_BS is None else mask_BS
    lengths_B = there_BS.sum(1)
    last_B = ids_BS.gather(1, (lengths_B - 1).clamp_min(0)[:, None])[:, 0]
    cut_BS = ids_BS[:, :reads].clone()
    if end is not None:
        ended_B = (lengths_B > reads) & (last_B == end)
        cut_BS[:, -1] = torch.where(ended_B, torch.full_like(last_B, end), cut_BS[:, -1])
    return cut_BS, None if mask_BS is None else mask_BS[:, :reads]
