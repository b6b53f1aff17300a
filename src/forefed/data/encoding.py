"""Texts to token arrays, once: the arrays are kept as .npy files and memory-mapped afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from forefed.core.errors import UserError
from forefed.data.examples import Examples, Indices
from forefed.data.prompts import prompt_tokens
from forefed.data.rows import Strings
from forefed.data.shorten import in_order, shortened
from forefed.data.token_files import Tokenised, digest_of_arrays, digest_of_request, load, save

CHUNK = 256  # texts per call of the tokeniser


@dataclass(frozen=True)
class Row:
    """One text as tokens: their ids and segment ids, what is learned (see ``Examples.labels``),
    predicted bytes, was it cut, is its answer cut off, can nothing be learned from it?"""

    ids: list[int]
    types: list[int] | None
    label: Any
    n_bytes: int = 0
    cut: bool = False
    out_of_reach: bool = False
    dropped: bool = False
    chars: NDArray[Any] | None = None
    learned: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Block:
    """Some texts as tokens: ``arrays`` of ``Examples`` by name, with "kept" (their positions among
    the texts) and "lengths" in the place of offsets; ``counts`` as ``Tokenised`` has them."""

    arrays: dict[str, NDArray[Any]]
    counts: dict[str, int]


@dataclass(frozen=True)
class Texts:
    """N texts before they are tokenised.

    Classification: ``first`` and, for pairs, ``second``, with the classes ``labels`` [N] (labels
    0 or 1 [N, C], or numbers [N], where those are learned). Language
    modelling (``labels`` None): ``first`` is the prompt ("": none), ``second`` the text to predict.
    Question answering: ``spans.Questions``.
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: NDArray[Any] | None
    notes: tuple[str, ...] = ()
    """Sentences for the user."""

    tests_keep_more: ClassVar[bool] = False
    """Are there rows that a test keeps though nothing can be learned from them?"""

    def __len__(self) -> int:
        return len(self.first)

    def select(self, rows: Indices) -> Texts:
        return Texts(
            _take(self.first, rows),
            None if self.second is None else _take(self.second, rows),
            None if self.labels is None else self.labels[rows],
            self.notes,
        )

    def blocks(self, tokenizer: Any, max_length: int, testing: bool) -> Iterator[Block]:
        """Every text as tokens, in order, some at a time."""
        if self.labels is not None:
            return _class_blocks(self, tokenizer, max_length)
        return blocks_of_rows(enumerate(_causal_rows(self, tokenizer, max_length)), testing)

    def form(self, tokenizer: Any) -> Any:
        """What the tokens depend on beside the texts and what the tokeniser makes of a text; None:
        nothing."""
        return None

    def said(self, tokenizer: Any, counts: Mapping[str, int]) -> tuple[str, ...]:
        """Sentences for the user on how the texts became tokens.

        Args:
            counts: of all texts of the table (``Tokenised``).
        """
        return ()

    def attach(self, found: Tokenised) -> Tokenised:
        """What was made of these texts, with what a cache of numbers does not hold."""
        return found


def _take(texts: Sequence[str], rows: Indices) -> Sequence[str]:
    return texts.take(rows) if isinstance(texts, Strings) else [texts[i] for i in rows]


def tokenise(
    texts: Texts,
    tokenizer: Any,
    max_length: int,
    cache_dir: Path | None = None,
    testing: bool = False,
) -> Tokenised:
    """Token arrays of all texts, each cut at ``max_length`` tokens.

    Classification: the tokeniser's own format with its special tokens; an empty text still has one
    token. Language modelling: prompt, text and the end-of-text token; prompt and text are tokenised
    apart, as a prompt is at use. Loss starts at the first token after the prompt (and never at the
    very first token, which nothing precedes). ``n_bytes`` is the UTF-8 length of the characters
    whose tokens are predicted (a character cut in two counts whole); the end-of-text token costs
    loss and has no bytes. So bits per byte = summed loss / ln 2 / summed bytes. A text of which no
    byte is predicted is dropped. Question answering: only the context is cut; a question whose
    answer is cut off is dropped, unless it is for ``testing``, where it counts as any other.

    Args:
        cache_dir: where the arrays are kept; None: in memory only. It holds no text.
        testing: whether the examples are for tests only.

    Raises:
        UserError: ``max_length`` beyond the model's, or a tokeniser without character offsets.
    """
    if max_length > tokenizer.model_max_length:
        raise UserError(
            f"data.max_length = {max_length} is more than the {tokenizer.model_max_length} tokens "
            "that the model takes; lower it"
        )
    if cache_dir is None:
        return texts.attach(_tokenise(texts, tokenizer, max_length, testing))
    folder = cache_dir / digest_of_request(texts, tokenizer, max_length, testing)
    stored = load(folder)
    if stored is None:
        save(_tokenise(texts, tokenizer, max_length, testing), folder)
        stored = load(folder)
        assert stored is not None, folder
    return texts.attach(stored)


def encode_texts(
    tokenizer: Any, texts: list[str], max_length: int, second: list[str] | None = None
) -> Examples:
    """Texts (or pairs) to classify, as a model was trained on them; every label is 0."""
    labels = np.zeros(len(texts), dtype=np.int64)
    return tokenise(Texts(texts, second, labels), tokenizer, max_length).examples


def end_of(tokenizer: Any) -> int | None:
    """The token that a tokeniser ends every text with; None: none."""
    ids = tokenizer("")["input_ids"]
    return int(ids[-1]) if ids else None


def _tokenise(texts: Texts, tokenizer: Any, max_length: int, testing: bool) -> Tokenised:
    causal = texts.labels is None
    counts: Counter[str] = Counter()
    flat: dict[str, Flat] = {}
    for block in texts.blocks(tokenizer, max_length, testing):
        counts.update(block.counts)
        for name, array in block.arrays.items():
            flat.setdefault(name, Flat(array)).add(array)
    columns = [c for c in (None if causal else texts.first, texts.second) if c is not None]
    empty = sum(any(not t.strip() for t in row) for row in zip(*columns, strict=True))
    arrays = {name: each.array() for name, each in flat.items()}
    kept = arrays.pop("kept")
    offsets = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(arrays.pop("lengths"), out=offsets[1:])
    optional: dict[str, Any] = {"types": arrays.pop("types", None)}
    examples = Examples(
        **{**arrays, **optional},
        offsets=offsets,
        pad_id=tokenizer.pad_token_id,
        causal=causal,
    )
    said = {"empty": empty, **counts}
    return Tokenised(examples, kept, said, digest_of_arrays(examples))


class Flat:
    """An array that grows at its end where it stands: joining its parts at last would take twice
    its memory."""

    def __init__(self, like: NDArray[Any]):
        self.dtype, self.shape, self.data = like.dtype, like.shape[1:], bytearray()

    def add(self, part: NDArray[Any]) -> None:
        self.data += np.ascontiguousarray(part, self.dtype).view(np.uint8).data

    def array(self) -> NDArray[Any]:
        return np.frombuffer(self.data, self.dtype).reshape(-1, *self.shape)


def blocks_of_rows(
    rows: Iterator[tuple[int, Row]], testing: bool, label_shape: tuple[int, ...] = ()
) -> Iterator[Block]:
    """Rows, which are lists, each with the number of its text, as arrays, some at a time; one block
    at least."""
    block = list(islice(rows, CHUNK))
    while True:
        kept = [(i, r) for i, r in block if not r.dropped and (testing or not r.out_of_reach)]
        arrays = {
            "kept": np.array([i for i, _ in kept], dtype=np.int64),
            "tokens": _flat([row.ids for _, row in kept], np.int32),
            "lengths": np.array([len(row.ids) for _, row in kept], dtype=np.int64),
            "labels": np.array([r.label for _, r in kept], np.int64).reshape(-1, *label_shape),
            "n_bytes": np.array([row.n_bytes for _, row in kept], dtype=np.int64),
        }
        types = [row.types for _, row in kept if row.types is not None]
        chars = [row.chars for _, row in kept if row.chars is not None]
        cut = sum(row.cut for _, row in kept)
        counts = {"truncated": cut, "dropped": len(block) - len(kept)}
        if types:
            arrays["types"] = _flat(types, np.uint8)
        if chars:
            arrays["chars"] = np.concatenate(chars).astype(np.int32)
            counts["out_of_reach"] = sum(row.out_of_reach for _, row in kept)
        learned = [row.learned for _, row in kept if row.learned is not None]
        if learned:
            arrays["learned"] = np.concatenate(learned)
        yield Block(arrays, counts)
        block = list(islice(rows, CHUNK))
        if not block:
            return


def placeholder_of(tokenizer: Any) -> int:
    """The token that stands for an empty text, where a tokeniser has no special tokens."""
    specials = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    return int(next(i for i in specials if i is not None))


def _class_blocks(texts: Texts, tokenizer: Any, max_length: int) -> Iterator[Block]:
    assert texts.labels is not None
    placeholder = placeholder_of(tokenizer)
    for start in range(0, max(1, len(texts)), CHUNK):
        whole = [c[start : start + CHUNK] for c in (texts.first, texts.second) if c is not None]
        columns = [list(c) for c in whole]
        if tokenizer.truncation_side == "right":
            short = [shortened(c, tokenizer, max_length) for c in columns]
            columns = in_order(columns, short, tokenizer) if len(columns) == 2 else short
        ids, types, cut = _encoded(columns, tokenizer, max_length) if columns[0] else ([], [], 0)
        for i in [i for i, each in enumerate(ids) if not each]:
            ids[i] = [placeholder]  # an empty text and a tokeniser without special tokens
            if types:
                types[i] = [0]
        sizes = [sum(len(text.encode()) for text in row) for row in zip(*whole, strict=True)]
        arrays: dict[str, NDArray[Any]] = {
            "kept": np.arange(start, start + len(ids)),
            "tokens": _flat(ids, np.int32),
            "lengths": np.fromiter(map(len, ids), np.int64, len(ids)),
            "labels": texts.labels[start : start + CHUNK],
            "n_bytes": np.array(sizes, dtype=np.int64),
        }
        if types:
            arrays["types"] = _flat(types, np.uint8)
        yield Block(arrays, {"truncated": cut, "dropped": 0})


def _encoded(
    columns: list[list[str]], tokenizer: Any, max_length: int
) -> tuple[list[list[int]], list[list[int]], int]:
    """Token ids and segment ids (none: the model takes none) by text, and how many were cut.

    A fast tokeniser is asked without the dictionaries that transformers makes of every text, which
    take longer than the tokens; on the first texts both ways must agree.
    """
    few = [column[:4] for column in columns]
    slow = tokenizer(*few, truncation=True, max_length=max_length)
    if slow.encodings is not None:  # the call above has set how the backend cuts
        batch = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        found = tokenizer.backend_tokenizer.encode_batch_fast(batch)
        ids = [e.ids for e in found]
        types = [e.type_ids for e in found] if "token_type_ids" in slow else []
        if ids[:4] == slow["input_ids"] and types[:4] == slow.get("token_type_ids", []):
            return ids, types, sum(bool(e.overflowing) for e in found)
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    lengths = map(len, tokenizer(*columns, verbose=False)["input_ids"])
    types = encoded.get("token_type_ids", [])
    return encoded["input_ids"], types, sum(n > max_length for n in lengths)


def _causal_rows(texts: Texts, tokenizer: Any, max_length: int) -> Iterator[Row]:
    assert texts.second is not None
    if not tokenizer.is_fast:
        raise UserError(
            "data.task: language modelling counts the bytes of predicted text, which needs the "
            "fast form of the model's tokeniser (tokenizer.json); choose a model that has one"
        )
    eos = tokenizer.eos_token_id
    for start in range(0, len(texts), CHUNK):
        unique = sorted(set(texts.first[start : start + CHUNK]))
        short = shortened(unique, tokenizer, max_length)
        prompts = dict(zip(unique, prompt_tokens(tokenizer, short), strict=True))
        whole_texts = texts.second[start : start + CHUNK]
        chunk = shortened(list(whole_texts), tokenizer, max_length)
        encoded = tokenizer(
            chunk, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for i, text in enumerate(chunk):
            prompt, ids = prompts[texts.first[start + i]], encoded["input_ids"][i]
            whole = prompt + ids + ([eos] if eos is not None else [])
            ends = [0, *(stop for _, stop in encoded["offset_mapping"][i])]
            unseen = 0 if prompt else min(1, len(ids))  # text tokens that nothing predicts
            last = max(unseen, min(len(ids), max_length - len(prompt)))
            stop = len(text) if last == len(ids) else ends[last]
            size = len(text[ends[unseen] : stop].encode()) if last > unseen else 0
            cut = len(whole) > max_length
            yield Row(whole[:max_length], None, len(prompt), size, cut, dropped=size == 0)


def _flat(rows: list[Any], dtype: type) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype)
