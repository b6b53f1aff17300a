"""Long texts are cut before they are tokenised, without a change to the tokens that are kept."""

from __future__ import annotations

from typing import Any

MARGIN = 32
"""Tokens behind those that are kept, which a cut before tokenising may change."""
CHARS_PER_TOKEN = 6
PAIR_CHARS = 1 << 16
"""Characters of the texts of a pair whose tokens are counted to find the longer one."""


def shortened(texts: list[str], tokenizer: Any, tokens: int) -> list[str]:
    """The texts, long ones cut to a beginning that has the same first ``tokens`` tokens.

    What stands far behind a token does not change it, but the end of a text does change those near
    to it: so a beginning ends at a blank and has ``MARGIN`` tokens more than are kept (four times
    as many where no blank is near), or is taken four times as long until it does, at last whole.
    """
    found = list(texts)
    size = CHARS_PER_TOKEN * (tokens + MARGIN)
    todo = [i for i, text in enumerate(texts) if len(text) > size]
    while todo:
        ends = [_end(texts[i], size) for i in todo]
        heads = [texts[i][:end] for i, (end, _) in zip(todo, ends, strict=True)]
        short = []
        for i, head, (_, margin), n in zip(
            todo, heads, ends, token_counts(heads, tokenizer), strict=True
        ):
            if n >= tokens + margin:
                found[i] = head
            else:
                short.append(i)
        size *= 4
        todo = [i for i in short if len(texts[i]) > size]
    return found


def _end(text: str, size: int) -> tuple[int, int]:
    """Where to cut a text at about this size, and how many tokens before that may change."""
    blank = max(text.rfind(c, size // 2, size) for c in " \n")
    return (blank, MARGIN) if blank > 0 else (size, 4 * MARGIN)


def in_order(whole: list[list[str]], short: list[list[str]], tokenizer: Any) -> list[list[str]]:
    """Shortened pairs in which the same text is the longer one as before: where both are cut to fit
    and an odd number of tokens is left, it keeps one more."""
    changed = [
        i for i, texts in enumerate(zip(*whole, *short, strict=True)) if texts[:2] != texts[2:]
    ]
    if not changed:
        return short
    found = [list(column) for column in short]
    beyond = [[max(0, len(c[i]) - PAIR_CHARS) for i in changed] for c in whole]
    counts = [token_counts([c[i][:PAIR_CHARS] for i in changed], tokenizer) for c in whole]
    heads = [token_counts([c[i] for i in changed], tokenizer) for c in short]
    for k, i in enumerate(changed):
        first_longer = counts[0][k] + beyond[0][k] > counts[1][k] + beyond[1][k]
        if first_longer != (heads[0][k] > heads[1][k]):
            shorter, longer = int(first_longer), int(not first_longer)
            share = 0.8 * heads[longer][k] / heads[shorter][k]
            found[shorter][i] = found[shorter][i][: int(share * len(found[shorter][i]))]
    return found


def token_counts(texts: list[str], tokenizer: Any) -> list[int]:
    lists = tokenizer(texts[:1], add_special_tokens=False, verbose=False)
    if lists.encodings is not None:  # the call above has set that nothing is cut
        backend = tokenizer.backend_tokenizer
        return [len(e) for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    found = tokenizer(texts, add_special_tokens=False, verbose=False)
    return [len(ids) for ids in found["input_ids"]]
