"""Long texts are cut before they are tokenised, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from forefed.core.keys import Key
from forefed.data import encoding
from forefed.data.encoding import Texts, tokenise
from forefed.data.files import read_files
from forefed.data.label_column import coded
from forefed.data.rows import CHUNK, Rows, Strings
from forefed.data.shorten import shortened
from forefed.data.tables import Text
from words import tokenizer as by_words


def tokenizers_of(kind: str) -> Any:
    """Byte-level BPE without a rule where words end, unigrams without one, or whole words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "words":
        return by_words(bos=True)
    sample = [text for i in range(10) for text in long_texts(i, 3)]
    if kind == "bpe":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(vocab_size=60, special_tokens=["<pad>", "</s>"])
    else:
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
        )
    inner.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )


def long_texts(value: int, n: int) -> list[str]:
    key = Key(value)
    words = "a b c d é north of the river nothing ever happened before".split()  # noqa: SIM905
    sizes = key.fold("size").integers(n, below=260)
    drawn = key.fold("word").integers(int(sizes.sum()) + 1, below=len(words))
    text = [words[i] for i in drawn]
    ends = np.cumsum(sizes)
    return [" ".join(text[b - a : b]) for a, b in zip(sizes.tolist(), ends.tolist(), strict=True)]


@pytest.mark.parametrize("kind", ["words", "bpe", "unigram"])
@pytest.mark.parametrize("length", [12, 15])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_cut_before_tokenising_changes_no_token(
    kind: str, length: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = tokenizers_of(kind)
    texts = [long_texts(7 + c, 25) for c in range(columns)]
    rows = Texts(texts[0], texts[1] if columns == 2 else None, np.zeros(25, dtype=np.int64))
    assert shortened(texts[0], tok, length) != texts[0]
    quick = tokenise(rows, tok, length)
    monkeypatch.setattr(encoding, "shortened", lambda texts, *_: texts)
    assert quick.digest == tokenise(rows, tok, length).digest
    assert quick.counts == tokenise(rows, tok, length).counts


def test_a_language_models_text_and_prompt_are_cut_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizers_of("bpe")
    rows = Texts(long_texts(1, 30), long_texts(2, 30), None)
    quick = tokenise(rows, tok, 20)
    monkeypatch.setattr(encoding, "shortened", lambda texts, *_: texts)
    whole = tokenise(rows, tok, 20)
    assert (quick.digest, quick.counts) == (whole.digest, whole.counts)


def test_blanks_and_long_words_are_passed_over() -> None:
    tok = by_words()
    blanks = "a" + " " * 5_000 + " ".join("b" * 90) + " c" * 50_000
    (found,) = shortened([blanks], tok, 12)
    assert len(found) < len(blanks) and found.count("b") >= 32
    word = "x" * 30_000
    assert shortened([word], tok, 12) == [word]  # one token, so nothing may be cut


def test_rows_keep_their_numbers_whatever_is_left_out() -> None:
    rows = Rows.of({"text": [*"abcdef"]})
    some = rows.select([1, 2, 4, 5]).with_column("more", rows.select(range(4)).array("text"))
    assert [rows.number(i) for i in (0, 5)] == [1, 6]
    assert [some.select([3, 0]).number(i) for i in (0, 1)] == [6, 2]


def test_a_part_of_texts_is_a_view_of_all() -> None:
    import pyarrow

    array = pyarrow.chunked_array([["a", "b"], [], ["c", "d", "e"]], pyarrow.large_string())
    whole = Strings(array)
    part = whole.take([4, 0, 3, 1]).take([0, 1, 3])
    assert part.array is array
    assert [*part] == part[:] == ["e", "a", "b"] and [part[i] for i in range(3)] == [*part]
    assert part[1:] == ["a", "b"] and part[::2] == ["e", "b"] and part[3:] == []
    assert Texts(whole, None, np.zeros(5)).select(np.array([1])).first.array is array


def test_an_array_that_grows_is_the_joined_one() -> None:
    parts = [np.arange(6, dtype=np.int64).reshape(3, 2), np.zeros((0, 2), np.int64)]
    grown = encoding.Flat(parts[0])
    for part in (*parts, parts[0].T.copy().T):
        grown.add(part)
    assert np.array_equal(grown.array(), np.concatenate([*parts, parts[0]]))
    assert grown.array().dtype == np.int64


def test_codes_of_a_column_in_many_pieces() -> None:
    import pyarrow

    pieces = pyarrow.chunked_array([["a", None], ["b", "a"], [], ["c"]])
    codes, values = coded(Rows(5, {"x": pieces}), "x", "here")
    assert [values[c] for c in codes] == ["a", None, "b", "a", "c"] and len(values) == 4
    assert coded(Rows(0, {"x": pyarrow.chunked_array([], pyarrow.string())}), "x", "here")[1] == []


def test_strings_that_grow_are_the_whole_column(tmp_path: Path) -> None:
    """Gaps, absent columns, blocks of nothing, letters of several bytes; and numbers that turn into
    text where 64 bits do not hold them."""
    n = 2 * CHUNK + 3
    texts = [None if i % 7 == 0 else "é" * (i % 3) + "x" * (i % 5) for i in range(n)]
    late = [None] * CHUNK + [f"{i}" for i in range(CHUNK + 3)]
    big = [2**63 + i if i % CHUNK == 1 else i for i in range(n)]
    rows = [
        {"text": t, "big": b} | ({} if w is None else {"late": w})
        for t, w, b in zip(texts, late, big, strict=True)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_files([path], "auto").rows
    assert (found["text"], found["late"]) == (texts, late)
    assert found["big"] == [str(b) for b in big]
    assert found.is_text("text") and found.array("text").null_count == sum(t is None for t in texts)


def test_a_slice_of_an_array_grows_as_its_values() -> None:
    text = Text()
    text.add(pyarrow.array(["no", "ä", None, "", "b"]).slice(1, 3))
    text.add(pyarrow.array(["c", None]))
    assert text.array().to_pylist() == ["ä", None, "", "c", None]
