"""Tokenised examples in flat arrays, and the padded batches made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forefed.core.keys import Key
from forefed.core.types import Batch

Indices = NDArray[np.int64]
IGNORED_LABEL = -100  # the label value on which Hugging Face models compute no loss


@dataclass(frozen=True)
class Passages:
    """The texts that predicted answers are cut from and compared to, by example.

    ``answers``: all that count as right, none where a question has no answer. ``longest``: tokens
    that a predicted answer may have.
    """

    contexts: list[str]
    answers: list[tuple[str, ...]]
    longest: int


class Speech:
    """What it takes to let a model write answers and to compare them.

    Args:
        tokenizer: the model's.
        ends: tokens that end an answer.
        tokens: at most, of one.
    """

    def __init__(self, tokenizer: Any, ends: tuple[int, ...], tokens: int):
        self.tokenizer, self.ends, self.tokens = tokenizer, ends, tokens

    def begins(self, examples: Examples, i: int) -> int:
        """Where the last answer of an example begins: its tokens before are the prompt."""
        first, last = examples.offsets[i], examples.offsets[i + 1]
        if examples.learned is None:
            return int(examples.labels[i])
        marks = np.asarray(examples.learned[first:last])
        ends = np.flatnonzero(marks)
        before = np.flatnonzero(marks[: ends[-1]] == 0)
        return int(before[-1]) + 1 if len(before) else 0

    def prompt(self, examples: Examples, i: int) -> list[int]:
        """The tokens before the last answer."""
        first = examples.offsets[i]
        prompt: list[int] = examples.tokens[first : first + self.begins(examples, i)].tolist()
        return prompt

    def right(self, examples: Examples, i: int) -> str:
        """The last answer, as far as it is kept."""
        first, last = examples.offsets[i] + self.begins(examples, i), examples.offsets[i + 1]
        return self.words(examples.tokens[first:last].tolist())

    def words(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Examples:
    """N tokenised examples: flat, so that a large data set is a few memory-mapped arrays.

    ``tokens``/``types`` [total] hold all token ids and segment ids, example i at
    ``offsets[i]:offsets[i + 1]``. Classification: ``labels`` [N] is the class; of several labels,
    0 or 1 [N, C]; of numbers, they themselves [N] float64. Language modelling (``causal``):
    ``labels`` [N] is the first position that carries loss (0: all tokens), and ``n_bytes`` [N] the
    UTF-8 length of the text that is predicted. Question answering: ``labels`` [N, 2] are the first
    and the last token of the answer (``IGNORED_LABEL``: it was cut off), and ``chars`` [total, 2]
    each token's first character in the context and the one after its last (-1 outside of it).
    Conversations: ``learned`` [total] is 1 where a token carries loss.
    """

    tokens: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    labels: NDArray[Any]
    n_bytes: NDArray[np.int64]
    pad_id: int
    causal: bool = False
    chars: NDArray[np.int32] | None = None
    passages: Passages | None = None
    reads: int | None = None
    """Tokens of a row that the model reads, where more are kept for a bag of words."""
    end: int | None = None
    """The last token of every row that is whole, and of every batch's rows that are cut."""
    learned: NDArray[np.uint8] | None = None
    speech: Speech | None = None
    choices: tuple[int, ...] | None = None
    """The tokens that stand for the classes, where a language model's own head scores them."""

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> NDArray[np.int64]:
        """Token counts [N] of what the model reads."""
        lengths = np.diff(self.offsets)
        return lengths if self.reads is None else np.minimum(lengths, self.reads)

    def tokens_of(self, indices: Sequence[int] | Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Every token of the named examples, whole: its row among them [T], its id [T]."""
        parts = [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        rows = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        ids = np.concatenate(parts) if parts else np.zeros(0)
        return torch.from_numpy(rows), torch.from_numpy(ids.astype(np.int64))

    def batch(self, indices: Sequence[int] | Indices, dropout: Key | None = None) -> Batch:
        """The named examples, right-padded to the longest of them."""
        rows = [slice(self.offsets[i], self.offsets[i + 1]) for i in indices]
        ends: list[int] = []
        if self.reads is not None:
            for b, row in enumerate(rows):
                if row.stop - row.start > self.reads:
                    rows[b] = slice(row.start, row.start + self.reads)
                    ends += [b] if self.tokens[row.stop - 1] == self.end else []
        width = max(row.stop - row.start for row in rows)
        ids_BS = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask_BS = np.zeros((len(rows), width), dtype=np.int64)
        types_BS = np.zeros((len(rows), width), dtype=np.int64)
        for b, row in enumerate(rows):
            ids_BS[b, : row.stop - row.start] = self.tokens[row]
            mask_BS[b, : row.stop - row.start] = 1
            if self.types is not None:
                types_BS[b, : row.stop - row.start] = self.types[row]
        ids_BS[ends, -1] = self.end if ends else 0
        inputs = {
            "input_ids": torch.from_numpy(ids_BS),
            "attention_mask": torch.from_numpy(mask_BS),
        }
        if self.types is not None:
            inputs["token_type_ids"] = torch.from_numpy(types_BS)
        labels = self.labels[np.asarray(indices)]
        if self.causal:
            positions_S = np.arange(width)
            no_loss_BS = (positions_S < labels[:, None]) | (mask_BS == 0)
            if self.learned is not None:
                for b, row in enumerate(rows):
                    no_loss_BS[b, : row.stop - row.start] |= self.learned[row] == 0
            labels = np.where(no_loss_BS, IGNORED_LABEL, ids_BS)
        return Batch(
            inputs=inputs,
            labels=torch.from_numpy(labels),
            dropout=dropout,
            choices=self.choices,
        )


@dataclass(frozen=True)
class ClientData:
    """One client's share: positions in ``examples`` for training and for its own test split."""

    examples: Examples
    train: Indices
    test: Indices
