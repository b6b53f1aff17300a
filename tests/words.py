"""A word-level tokeniser and tables for the tests of the data, built without a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from forefed.data.rows import Rows
from forefed.data.sources import Table

WORDS = ("<pad>", "<unk>", "<s>", "</s>", "a", "b", "c", "d", "é")
IDS = {word: i for i, word in enumerate(WORDS)}


def tokenizer(bos: bool = False, eos: bool = True) -> Any:
    """Splits at blanks; "a b" is [4, 5]. ``bos``: every text starts with <s> (2)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>" if eos else None,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def table(test: dict[str, Any] | None = None, owner: str | None = None, **columns: Any) -> Table:
    rows = Rows.of(columns)
    return Table(rows, test and Rows.of(test), owner, {"kind": "test"})


def tokens(examples: Any) -> list[list[int]]:
    return [
        examples.tokens[a:b].tolist()
        for a, b in zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
    ]


def data_folder(name: str) -> Path:
    root = os.environ.get("FOREFED_DATA")
    if not root:
        pytest.skip("FOREFED_DATA names no folder with data sets")
    return Path(root) / name


def all_of(arrays: Sequence[Any]) -> list[int]:
    return sorted(int(i) for a in arrays for i in a)
