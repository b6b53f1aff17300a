"""A bag of words beside the features: a function of the row, exact sums, the same outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import forefed
from federation import World
from forefed.core.errors import ProtocolError
from forefed.data.encoding import encode_texts, end_of
from forefed.models.bag_of_words import BUCKETS, STEP, Bag, Words, beginnings, occurrences
from forefed.models.load import load_tokenizer
from forefed.run.build import build
from forefed.run.run import run
from forefed.run.start_result import load_begun, with_start
from forefed.start import word_scores as start_words
from forefed.start.answer import Answers, about
from forefed.start.closed_form import WORDS, words_of
from forefed.start.word_scores import (
    Descent,
    by_target,
    documents_of,
    kept,
    products,
    solved,
    sparse,
    whole,
)
from forefed.use import predict as use
from forefed.use.forget import forget
from forefed.wire.questions import decode_answer, encode_question

CLASSES = 3
TEXTS = [[7, 8, 7], [9], [7, 8], [5, 5, 5, 5], [9, 8, 7], [7, 9], [8, 9, 9]]
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 1])


def tokens(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
    return torch.from_numpy(rows), torch.tensor([i for t in texts for i in t])


def bag_of(texts: list[list[int]], most: int = 100) -> Bag:
    row_E, bucket_E, _ = occurrences(*tokens(texts))
    return kept(documents_of(row_E, bucket_E)[:, 0], len(texts), most)


def marks(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES)


def dense(bag: Bag, texts: list[list[int]]) -> Tensor:
    row_E, slot_E, value_E = bag.entries(*tokens(texts))
    x_NF = torch.zeros(len(texts), len(bag), dtype=torch.float64)
    x_NF[row_E, slot_E] = STEP * value_E.double()
    return x_NF


def test_words_are_tokens_and_neighbours_and_those_of_one_row_are_left_out() -> None:
    row_E, bucket_E, count_E = occurrences(*tokens([[7, 8, 7]]))
    assert row_E.tolist() == [0] * 4  # 7, 8, "7 8", "8 7"
    assert sorted(count_E.tolist()) == [1, 1, 1, 2] and len(set(bucket_E.tolist())) == 4
    assert bucket_E.min() >= 0 and bucket_E.max() < BUCKETS
    # 7, 8, 9, "7 8", "8 7", and no pair across two rows; "5 5" is often in one row only
    assert len(bag_of(TEXTS)) == 5 and len(bag_of(TEXTS, 2)) == 2


def test_a_row_is_its_counts_logs_and_idf_at_length_one() -> None:
    bag = bag_of([[7, 7, 7, 8], [7, 8], [4]])
    x_F = dense(bag, [[7, 7, 7, 8]])[0]
    # all of 7, 8, "7 8" stand in two of three rows, so idf does not count: ln 3 + 1, 1, 1
    expected = np.array([1 + np.log(3), 1, 1]) / np.sqrt((1 + np.log(3)) ** 2 + 2)
    np.testing.assert_allclose(sorted(x_F.tolist(), reverse=True), expected, atol=STEP)
    # nothing known: nothing said
    assert dense(bag, [[4, 4]]).abs().sum() == 0


def test_sums_of_words_do_not_see_who_holds_what_not_by_a_bit() -> None:
    bag = bag_of(TEXTS)
    p_FC = torch.linspace(-1, 1, len(bag) * CLASSES).reshape(len(bag), CLASSES).half()

    def both(rows: list[int]) -> tuple[Tensor, Tensor]:
        entries = bag.entries(*tokens([TEXTS[i] for i in rows]))
        own = by_target(entries, marks(LABELS[rows]), len(bag))
        return own, products(entries, len(rows), p_FC)

    everything = both(list(range(7)))
    for parts in ([[6, 0, 3], [1], [5, 4, 2]], [[i] for i in range(7)]):
        found = [sum(x) for x in zip(*map(both, parts), strict=True)]
        assert all(
            torch.equal(torch.as_tensor(a), b) for a, b in zip(found, everything, strict=True)
        )
    x_NF = dense(bag, TEXTS)
    scale = STEP * start_words.ANSWER_STEP
    torch.testing.assert_close(
        everything[1].double() * scale, x_NF.T @ (x_NF @ p_FC.double()), atol=2e-3, rtol=0
    )


def test_conjugate_gradients_end_at_the_ridge_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_words, "STEPS", 12)
    bag = bag_of(TEXTS)
    entries, x_NF = bag.entries(*tokens(TEXTS)), dense(bag, TEXTS)
    y_NC = torch.eye(CLASSES, dtype=torch.float64)[LABELS]
    chances_C = y_NC.mean(0)
    first = by_target(entries, y_NC, len(bag))
    assert torch.equal(first[:, :-1].sum(1), first[:, -1])
    begun = Descent.of(first, chances_C, 1.0)
    # another set of rows beside it changes nothing
    few = bag.entries(*tokens(TEXTS[:3]))
    other = Descent.of(by_target(few, y_NC[:3], len(bag)), y_NC[:3].mean(0), 1.0)
    found, beside = solved(
        [begun, other],
        lambda sent: [products(entries, len(TEXTS), sent[0]), products(few, 3, sent[1])],
    )
    (alone,) = solved([other], lambda sent: [products(few, 3, sent[0])])
    assert torch.equal(alone, beside)
    damped = x_NF.T @ x_NF + torch.eye(len(bag), dtype=torch.float64)
    expected = torch.linalg.solve(damped, x_NF.T @ (y_NC - chances_C))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    (nobody,) = solved([begun], lambda _: None)
    assert nobody.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x/at": torch.tensor([1, 1]).int()}, "words that there are not"),
        ({"x/at": torch.tensor([1, 9]).int()}, "words that there are not"),
        ({"x/at": torch.tensor([-1, 2]).int()}, "words that there are not"),
        ({"x/at": torch.tensor([1]).int()}, "have another size"),
        ({"x/at": torch.tensor([1.0, 2.0])}, "no sums 'x'"),
    ],
)
def test_sums_of_words_travel_sparse_and_damage_is_refused(change: Any, match: str) -> None:
    x_FC = torch.tensor([[0, 0], [3, -1], [0, 2**20], [0, 0]])
    sent = sparse(x_FC, "x")
    assert torch.equal(whole(sent, "x", 4, 2), x_FC) and len(sent["x/at"]) == 2
    assert torch.equal(whole(sparse(0 * x_FC, "x"), "x", 4, 2), 0 * x_FC)
    with pytest.raises(ProtocolError, match=match):
        whole({**sent, **change}, "x", 4, 2)


def test_the_model_reads_what_it_would_have_read_without_the_words(world: World) -> None:
    tokenizer = load_tokenizer(world.config(Path("runs")).model)
    texts = ["w5 w6", "w7 " * 40, "w8 w9 " * 6]
    short = encode_texts(tokenizer, texts, 12)
    kept_whole = encode_texts(tokenizer, texts, 30)
    cut = replace(kept_whole, reads=12, end=end_of(tokenizer))
    one, other = (x.batch([0, 1, 2]).inputs for x in (short, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert cut.lengths().tolist() == short.lengths().tolist()
    padded = kept_whole.batch([0, 1, 2]).inputs
    ids, mask = beginnings(padded["input_ids"], padded["attention_mask"], 12, end_of(tokenizer))
    assert torch.equal(ids, one["input_ids"]) and mask is not None
    assert torch.equal(mask, one["attention_mask"])
    assert len(cut.tokens_of([1])[1]) == 30


@pytest.fixture(scope="module")
def spoken(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of texts whose classes are told by their words, longer than what the model reads."""
    root = tmp_path_factory.mktemp("spoken")
    rows = [
        {"text": f"w{30 + i % 5} {'w4 ' * 20}w{10 + i % 3}", "label": "abc"[i % 3]}
        for i in range(90)
    ]
    path = root / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ("start=closed_form", "start.words_length=64", "model.pooling=mean", "rounds=0")
    return run(world.config(root, *sets, f"data.source.path='{path}'")).folder


def test_words_beyond_what_the_model_reads_decide(spoken: Path) -> None:
    begun = load_begun(spoken)
    assert begun is not None and begun.words is not None and begun.finished
    tests = [json.loads(x) for x in (spoken / "evaluations.jsonl").open()]
    assert [t["accuracy"] for t in tests] == [1.0, 1.0] and tests[1]["all_rows"]
    assert max(x["accuracy"] for x in begun.line["tried"]) < 0.8
    line = json.loads((spoken / "summary.json").read_text())
    assert line["totals"]["forwards"] == begun.line["forwards"] > 0


def test_predict_and_the_export_say_the_same_with_words(world: World, spoken: Path) -> None:
    texts = [f"w31 {'w4 ' * 20}w{10 + i}" for i in range(3)] + ["w12", "w30 w31"]
    said = [p.chances for p in use.predict(spoken, texts)]
    loaded = forefed.load(spoken / "adapter", base=str(world.bert))
    inputs = loaded.tokenizer(texts, padding=True, truncation=True, max_length=64)
    with torch.no_grad():
        logits = loaded.model(**{n: torch.tensor(x) for n, x in inputs.items()}).logits
    np.testing.assert_allclose(logits.softmax(1).numpy(), np.array(said), atol=1e-5)
    assert [p.predicted for p in use.predict(spoken, texts[:3])] == ["a", "b", "c"]


def test_steps_and_the_guard_judge_the_model_that_is_used(world: World, spoken: Path) -> None:
    """A client's loss and the guard's are those of logits with what the words say."""
    config = forefed.configure(base=json.loads((spoken / "config.json").read_text()))
    sets = {"rounds": 1, "client": config.client.model_copy(update={"max_steps": 1})}
    federation = build(config.model_copy(update=sets))
    begun, task = load_begun(spoken), federation.task
    assert begun is not None and begun.words is not None
    state = with_start(federation.start(), begun)
    who, order = next(iter(federation.star.plan(state).items()))
    data = federation.data.population.client(who)
    rows = federation.trainer.batches(order, data)[0]

    def loss(rows: Any, words: Words | None) -> float:
        sums = task.evaluate(state.params, data.examples, rows, 32, words=words)
        return float(sums["loss_sum"] / sums["weight"])

    update, _ = federation.trainer(order, data, {})
    assert update.metrics["loss"] == pytest.approx(loss(rows, begun.words), rel=1e-4)
    assert abs(loss(rows, begun.words) - loss(rows, None)) > 0.01
    asked = {f"0/{n}": x for n, x in state.params.items()}
    asked |= {f"words/{n}": x for n, x in state.of("words").items()}
    answers = Answers(task)
    found = decode_answer(
        answers(encode_question("loss", about(task), asked), data), "loss", about(task)
    )
    assert float(found["loss"][0] / found["n"]) == pytest.approx(loss(data.test, begun.words))
    broken = {**asked, "words/buckets": asked["words/buckets"] + BUCKETS}
    with pytest.raises(ProtocolError, match="these words are none"):
        answers(encode_question("loss", about(task), broken), data)


def test_all_rows_are_learned_at_the_end(world: World, spoken: Path) -> None:
    begun = load_begun(spoken)
    assert begun is not None
    assert begun.total.rows == 81 and begun.line["held_out"] > 0


def test_forgetting_weighs_words_by_the_others_alone(spoken: Path, tmp_path: Path) -> None:
    import shutil

    from forefed.config.config import Config
    from forefed.core.settings import parse
    from forefed.run import record

    copy = tmp_path / spoken.name
    shutil.copytree(spoken, copy)
    left = forget(copy, 2)
    config = parse(Config, record.read_config(copy)).model_copy(update={"out": tmp_path})
    population = build(config).data.population
    clients = [population.client(c) for c in range(6) if c != 2]
    rows = np.concatenate([np.concatenate([c.train, c.test]) for c in clients])
    train = np.concatenate([c.train for c in clients])
    row_E, bucket_E, _ = occurrences(*population.examples.tokens_of(train))
    bag = kept(documents_of(row_E, bucket_E)[:, 0], len(train), WORDS)
    entries = bag.entries(*population.examples.tokens_of(rows))
    labels = torch.from_numpy(population.examples.labels[rows])
    shares = labels.bincount().double() / len(rows)
    begun = Descent.of(by_target(entries, marks(labels), len(bag)), shares, 1.0)
    (found,) = solved([begun], lambda sent: [products(entries, len(rows), sent[0])])
    weight = found.float()
    together = left.line["scale_with_words"] * left.line["share"]
    assert left.words is not None and torch.equal(left.words.bag.buckets, bag.buckets)
    assert torch.equal(left.words.weight, weight * together)


def test_words_leave_a_site_only_where_nobody_sees_its_own(world: World, tmp_path: Path) -> None:
    def count(*more: str) -> int:
        return words_of(world.config(tmp_path, "start=closed_form", *more), "mean")

    sites = ("partition.kind=sites", "partition.names=['a','b','c','d','e']")
    assert count() == WORDS and count("start.words=50") == 50 and count("start.words=0") == 0
    assert count(*sites) == 0 and count(*sites, "start.words=50") == 50
    assert count(*sites, "channel=secure_sum") == WORDS
    assert count("data.task=pairs") == 0


def test_words_say_the_same_in_any_batch() -> None:
    bag = bag_of(TEXTS)
    words = Words(bag, torch.linspace(-1, 1, 3 * len(bag)).reshape(-1, 3), 0.5)
    together = words.logits(*tokens(TEXTS), len(TEXTS))
    alone = torch.cat([words.logits(*tokens([t]), 1) for t in TEXTS])
    assert torch.equal(together, alone)
    packed = Words.unpacked(words.packed())
    logits = torch.ones(len(TEXTS), 3)
    torch.testing.assert_close(
        packed.added(logits, *tokens(TEXTS)), (0.5 + together).float(), atol=1e-6, rtol=0
    )
