"""A prompt as tokens: the one way in training, in prediction and in an export's own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def prompt_tokens(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of every prompt with what the tokeniser puts before a text, and without what it
    puts behind one: the text that is to follow is not at its end.
    """
    if not prompts:
        return []
    last = ending(tokenizer)
    lists = tokenizer(list(prompts), verbose=False)["input_ids"]
    return [ids[: len(ids) - last] for ids in lists]


def ending(tokenizer: Any) -> int:
    """How many special tokens the tokeniser puts behind a text."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return next((n for n, mark in enumerate(reversed(special)) if not mark), 0)
