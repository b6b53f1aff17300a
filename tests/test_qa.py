"""Extractive question answering: scores, spans, tokens, the model's head, a run and its use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import Command, mistake, options
from federation import World, lines, question_rows, tokenizer, write_lines
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Order
from forefed.data.examples import IGNORED_LABEL
from forefed.data.partition import Iid, Natural
from forefed.data.prepare import prepare
from forefed.data.settings import DataSettings
from forefed.data.spans import Questions, _row, best_spans, exact_match, f1, predict
from forefed.data.tasks import Encoded, QuestionAnswering
from forefed.directions import Fresh
from forefed.directions.sets import BasisDirections
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.exact_head import ExactHead
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.local.training import AssignedLoss
from forefed.models.adapters import HeadOnly, Lora, TinyLora
from forefed.models.export import load_adapter, save_adapter
from forefed.models.load import load_base
from forefed.models.prefix import FrozenPrefix, PrefixCache
from forefed.models.settings import ModelSettings
from forefed.models.task import Task
from forefed.plan.probe import assigned, batch_of, build
from forefed.plan.scene import Scene
from forefed.run.planning import scene_of_config
from tiny import moved, tiny_model, tiny_task
from tiny_configs import ENCODERS
from words import data_folder, table, tokens

KEY = Key(3)
FAMILIES = (*ENCODERS, "albert", "deberta-v2", "modernbert")
"""With a head for spans, and encoders alone (T5 is none)."""

SCORES = [  # what is said, what is right, exact match, F1
    ("The Cat!", ["cat"], 1, 1),
    ("cat sat", ["the cat"], 0, 2 / 3),  # precision 1/2, recall 1
    ("b b c", ["b c c"], 0, 2 / 3),  # two words in common, each counted as often as on both sides
    ("b c d", ["d e f g", "b c"], 0, 4 / 5),  # the better of 2/7 and 4/5
    ("U.S.A.  an  apple", ["usa apple"], 1, 1),
    ("theatre", ["atre"], 0, 0),  # an article is a word, no part of one
    ("x", ["y"], 0, 0),
    ("", [], 1, 1),
    ("the", [], 1, 1),  # nothing but an article is nothing
    ("cat", [], 0, 0),
    ("", ["cat"], 0, 0),
    ("", ["cat", "the"], 0, 0),  # a right answer without words counts only if all are
]


@pytest.mark.parametrize(("said", "right", "exact", "overlap"), SCORES)
def test_scores_by_hand(said: str, right: list[str], exact: float, overlap: float) -> None:
    assert exact_match(said, right) == exact
    assert f1(said, right) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("longest", "none", "span"),
    [(30, 0.0, [3, 4]), (1, 0.0, [2, 2]), (30, 5.4, [3, 4]), (30, 5.5, [0, 0]), (1, 5.2, [0, 0])],
)
def test_the_best_span_by_hand(longest: int, none: float, span: list[int]) -> None:
    """Outside of the context are 9s, an end before its start would give 7.5."""
    start, end = [none, 9.0, 1.0, 3.5, 0.0], [0.0, 9.0, 4.0, 0.0, 2.0]
    context = torch.tensor([[False, False, True, True, True]])
    assert best_spans(torch.tensor([[start, end]]), context, longest).tolist() == [span]


def encode(rows: list[dict[str, Any]], length: int = 32, **settings: Any) -> Encoded:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    task = QuestionAnswering(**settings)
    return task.encode(table(columns, **columns), tokenizer(types=True), length, 0.25, KEY)


def about(answer: str, start: int, context: str = "w5 w9 w7 w8") -> dict[str, Any]:
    return {"question": "w9 w3", "context": context, "answer": answer, "answer_start": start}


ROWS = [about("w7 w8", 6), about("w5", 0), about("", -1), about("w5 w9", -1), about(" w7 ", 5)]


def test_tokens_and_spans_by_hand() -> None:
    train = encode(ROWS).train
    assert tokens(train)[0] == [0, 9, 3, 2, 5, 9, 7, 8, 2]
    assert train.types is not None and train.chars is not None and train.passages is not None
    assert train.types[:9].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert train.chars[3:9].tolist() == [[-1, -1], [0, 2], [3, 5], [6, 8], [9, 11], [-1, -1]]
    assert train.labels.tolist() == [[6, 7], [4, 4], [0, 0], [0, 0], [6, 6]]
    assert train.passages.answers == [("w7 w8",), ("w5",), (), (), ("w7",)]


def test_a_context_is_cut_and_an_answer_may_be_cut_off() -> None:
    encoded = encode(ROWS, length=8)
    assert tokens(encoded.test)[0] == [0, 9, 3, 2, 5, 9, 7, 2]
    assert encoded.test.labels.tolist()[0] == [IGNORED_LABEL] * 2
    assert encoded.train.labels.tolist() == [[4, 4], [0, 0], [0, 0], [6, 6]]
    assert encoded.counts == {
        **{"examples": 4, "test": 5, "empty": 0, "truncated": 4 + 5, "dropped": 1},
        "out_of_reach": 1,
    }
    assert encoded.test.passages is not None and encoded.test.passages.answers[0] == ("w7 w8",)
    assert encoded.train.passages is not None  # of the kept ones
    assert encoded.train.passages.answers == [("w5",), (), (), ("w7",)]
    # A question that leaves no room for its context is cut itself.
    assert set(map(tuple, tokens(encode(ROWS, length=4).test))) == {(0, 9, 3, 2)}


def test_tokens_that_touch_are_told_apart() -> None:
    """Word pieces have no blank between them: "aabbcc" as aa, bb, cc, and "bb" is asked for."""
    chars = np.array([[-1, -1], [0, 2], [2, 4], [4, 6]])
    assert _row([9, 10, 11, 12], None, chars, [2, 4], 8).label == (2, 2)
    assert _row([9, 10, 11, 12], None, chars, [1, 3], 8).label == (1, 2)


def test_right_positions_give_the_right_words() -> None:
    examples = encode(question_rows()).test
    assert examples.passages is not None
    rows = np.flatnonzero(examples.labels[:, 0] != IGNORED_LABEL)
    batch = examples.batch(rows)
    logits = torch.stack([torch.eye(batch.length)[batch.labels[:, i]] for i in (0, 1)], 1)
    answers = [examples.passages.answers[i] for i in rows]
    assert predict(logits, examples, rows) == [a[0] if a else "" for a in answers]
    assert {len(a) for a in answers} == {0, 1} and len(rows) == 45  # three are cut off


def test_squads_own_answers_are_read_and_all_count(tmp_path: Path) -> None:
    flat = encode(ROWS)
    nested = [
        {
            "question": r["question"],
            "context": r["context"],
            "answers": {"text": [], "answer_start": []},
        }
        for r in ROWS
    ]
    for row, example in zip(nested, ROWS, strict=True):
        if example["answer"] and example["answer_start"] >= 0:
            row["answers"] = {
                "text": [example["answer"], "w9 w7"],
                "answer_start": [example["answer_start"], 3],
            }
    read = encode(nested)
    assert read.train.labels.tolist() == flat.train.labels.tolist()
    assert read.train.passages is not None
    assert read.train.passages.answers[0] == ("w7 w8", "w9 w7")
    with pytest.raises(UserError, match="answer_start: the column 'answers' says itself"):
        encode(nested, answer_start="question")
    nested[1]["answers"]["text"] = []
    with pytest.raises(UserError, match="row 2 of the training rows has 0 answers and 2 starts"):
        encode(nested)


BAD = [
    (
        about("w7", 5),
        r"row 3 of the training rows: the answer 'w7' does not begin at character 5.*"
        r"where ' w' stands \(it stands at 6\)",
    ),
    (about("w8 w7", 6), "row 3 .*the context has no such words"),
    (about("w7", 60), "row 3 "),
    (about("w7", None), "row 3 .*character None"),  # type: ignore[arg-type]
    (about("w7", -2), "row 3 "),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_an_answer_that_is_not_there_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode([*ROWS[:2], row])


def test_missing_columns_are_named() -> None:
    with pytest.raises(UserError, match=r"data\.task\.answer_start: cannot tell.*Columns here"):
        encode([{k: v for k, v in row.items() if k != "answer_start"} for row in ROWS])
    with pytest.raises(UserError, match="there is no column 'contxt': did you mean 'context'"):
        encode(ROWS, context="contxt")


def test_whole_contexts_are_held_out(world: World) -> None:
    source = {"kind": "files", "path": world.questions}
    contexts = {}
    for test_on in ("test", "validation"):
        settings = DataSettings(
            source=source, task="qa", max_length=32, test_fraction=0.25, test_on=test_on
        )
        made = prepare(settings, Iid(clients=2), tokenizer(types=True), KEY, None)
        train, test = made.population.examples.passages, made.test.passages
        assert train is not None and test is not None
        contexts[test_on] = (set(train.contexts), set(test.contexts))
        assert not set(train.contexts) & set(test.contexts)
    assert len(contexts["test"][1]) == 3  # of twelve
    learned, tested = contexts["validation"]
    assert not (learned | tested) & contexts["test"][1]
    by_context = prepare(settings, Natural(column="context"), tokenizer(types=True), KEY, None)
    population, passages = by_context.population, by_context.population.examples.passages
    for i in range(population.size):
        client = population.client(i)
        assert passages is not None
        assert len({passages.contexts[j] for j in [*client.train, *client.test]}) == 1


def test_nothing_to_hold_out() -> None:
    rows = {name: [r[name] for r in ROWS] for name in ROWS[0]}
    with pytest.raises(UserError, match="1 context is too few"):
        QuestionAnswering().encode(table(**rows), tokenizer(types=True), 32, 0.25, KEY)


def scene(family: str, adapter: Any) -> tuple[Task, Any, Any]:
    """A task at a random point and seven ragged examples, one of them without an answer."""
    task = tiny_task(family, adapter, head="spans")
    ragged = [about("w7", 6), about("", -1), about("w12", 16, "w5 w9 w7 w8 w10 w12")]
    ragged += [about("w5", 0, "w5"), *ROWS[:3]]
    return task, moved(task.params), encode(ragged).train.batch(range(7))


def far(a: Any, b: Any) -> float:
    return float(trees.norm(trees.subtract(a, b)) / trees.norm(b))


@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_equal_gradient_times_direction(family: str) -> None:
    task, params, batch = scene(family, Lora(r=2))
    exact = Backprop()(task.loss, params, batch)
    assert task.head and all(n in exact.grad for n in task.head)
    engine = Forward(tangents=2, micro_batch=2)
    directions = Fresh(k=3).of(Order(1, 1, 1, tuple(params), params))
    found = engine(task.loss, params, batch, directions, task.head)
    expected = directions.project({n: g for n, g in exact.grad.items() if n not in task.head})
    assert float((found.slopes_K - expected).norm() / expected.norm()) < 1e-9
    assert far(found.grad, trees.pick(exact.grad, task.head)) < 1e-10
    assert found.loss == pytest.approx(exact.loss, rel=1e-12) and found.fallbacks == {}


def test_engines_agree() -> None:
    task, params, batch = scene("bert", TinyLora(r=2, u=3))
    exact = Backprop(micro_batch="all")(task.loss, params, batch)
    assert far(Backprop(micro_batch=3)(task.loss, params, batch).grad, exact.grad) < 1e-12
    assert far(
        Checkpointed(micro_batch=2)(task.loss_recomputed, params, batch).grad, exact.grad
    ) < (1e-12)
    body = [n for n in params if n not in task.head]
    every = Forward(tangents=5)
    slopes = every(task.loss, params, batch, BasisDirections(), task.head)
    grad = BasisDirections().combine(trees.pick(params, body), slopes.slopes_K)
    assert far({**grad, **slopes.grad}, exact.grad) < 1e-9
    engine = FiniteDifference(eps=1e-5)
    directions = Fresh(k=2).of(Order(1, 1, 1, tuple(params), params), body)
    found = engine(task.loss, params, batch, directions, task.head)
    expected = directions.project(trees.pick(exact.grad, body))
    assert float((found.slopes_K - expected).norm() / expected.norm()) < 1e-6
    head = AssignedLoss(task.loss, params)
    alone = ExactHead()(head, trees.pick(params, task.head), batch, None, task.head)
    assert far(alone.grad, trees.pick(exact.grad, task.head)) < 1e-12


def test_the_loss_is_that_of_transformers_without_its_padding() -> None:
    task, params, batch = scene("bert", Lora(r=2))
    alone = []
    for b in range(batch.size):
        length = int(batch.inputs["attention_mask"][b].sum())
        inputs = {name: x[b : b + 1, :length] for name, x in batch.inputs.items()}
        row = replace(batch, inputs=inputs, labels=batch.labels[b : b + 1])
        alone.append(float(task.loss(params, row)))
        start, end = row.labels[0]
        plain = task.model.get_base_model()
        theirs = plain(**inputs, start_positions=start[None], end_positions=end[None]).loss
        assert float(task.loss(task.params, row)) == pytest.approx(float(theirs), rel=1e-12)
    assert float(task.loss(params, batch)) == pytest.approx(np.mean(alone), rel=1e-12)
    off = replace(batch, labels=batch.labels.clone())
    off.labels[0] = IGNORED_LABEL
    assert task.loss.weight(off) == batch.size - 1
    assert float(task.loss(params, off)) == pytest.approx(np.mean(alone[1:]), rel=1e-12)


def test_a_cached_prefix_changes_nothing() -> None:
    task, params, batch = scene("bert", Lora(r=2, layers="last:1"))
    prefix = FrozenPrefix(task, PrefixCache(10**6))
    assert prefix.refusal(1) is None
    cached = prefix.loss(task.loss, list(params), recurring=True)
    assert cached is not task.loss
    assert float(cached(params, batch)) == pytest.approx(float(task.loss(params, batch)), rel=1e-9)


@pytest.mark.parametrize("adapter", [Lora(r=2), HeadOnly()], ids=lambda a: a.kind)
def test_round_trip_through_peft_keeps_segment_ids(adapter: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    task, params, batch = scene("bert", adapter)
    save_adapter(task, params, tmp_path / "adapter", "# card\n")
    with torch.random.fork_rng(), torch.no_grad():
        base = tiny_model("bert", head="spans")
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        theirs = task.objective.logits(loaded(**batch.inputs))
        assert torch.equal(task.logits(params, batch), theirs)
        without = {n: x for n, x in batch.inputs.items() if n != "token_type_ids"}
        assert not torch.allclose(task.objective.logits(loaded(**without)), theirs)
    again = load_adapter(task, tmp_path / "adapter")
    assert all(torch.equal(again[n], params[n]) for n in params)


def test_evaluation_by_hand(world: World) -> None:
    """Two questions, of which one has no answer: what the model says decides the sums."""
    task, params, _ = scene("bert", Lora(r=2))
    examples = encode([about("w7 w8", 6), about("", -1), about("w5", 0)]).test
    said = task.objective.answers(task.logits(params, examples.batch(range(3))), examples, range(3))
    right = [["w7 w8"], [], ["w5"]]
    plain = ["" if s == "(no answer)" else s for s in said]
    sums = task.evaluate(params, examples, range(3), 2)
    assert sums["exact"] == sum(exact_match(*pair) for pair in zip(plain, right, strict=True))
    assert sums["f1"] == pytest.approx(sum(f1(*pair) for pair in zip(plain, right, strict=True)))
    assert sums["n"] == sums["weight"] == 3
    assert sums["loss_sum"] == pytest.approx(3 * float(task.loss(params, examples.batch(range(3)))))
    assert task.objective.constant(examples, examples) == pytest.approx(1 / 3)
    all_answered = encode([about("w5", 0), about("w7", 6)]).test
    assert task.objective.constant(examples, all_answered) is None


def test_decoders_are_refused(world: World) -> None:
    with pytest.raises(UserError, match=r"is a decoder.*'qa' needs an encoder"):
        load_base(ModelSettings(name=str(world.llama)), KEY, None, "spans")


def test_a_run_and_its_use(world: World, tmp_path: Path, forefed_command: Command) -> None:
    sets = ["strategy=spry", "data.max_length=16", "rounds=3", "evaluate.clients=2", "name=answers"]
    sets += ["partition=natural", "partition.column=context", "data.test_fraction=0.25"]
    sets += ["data.task.longest_answer=4"]
    result = world.run(tmp_path, *world.qa, *sets)
    final, baseline = result.summary["final"], result.summary["baseline"]
    assert 0 <= final["exact_match"] <= final["f1"] <= 1 and final["n"] == 12
    assert baseline["majority"] == 3 / 12 and "accuracy" not in final
    own = [e for e in lines(result.folder, "evaluations.jsonl") if e["split"] == "clients"]
    assert len(own) == 4 and all("f1" in e for e in own)
    counts = json.loads((result.folder / "environment.json").read_text())["data"]["counts"]
    assert counts["dropped"] + counts["out_of_reach"] == 3
    card = (result.folder / "adapter" / "README.md").read_text()
    assert "AutoModelForQuestionAnswering.from_pretrained(base, config=config" in card
    assert f"F1 {final['f1']:.3f}" in card and "no answer at all 0.250" in card

    row = {"question": "w9 w3", "context": "w5 w9 w7 w8"}
    said = forefed_command("predict", result.folder, row["question"], row["context"])
    file = write_lines(tmp_path / "ask.jsonl", [row, row])
    both = forefed_command("predict", result.folder, "--file", file)
    assert said.status == both.status == 0 and both.out == 2 * said.out
    answer = said.out.split("  ")[0]
    assert answer == "(no answer)" or answer in row["context"]
    mistake(forefed_command("predict", result.folder, "w9"), "two texts per example", "context")
    wrong = write_lines(tmp_path / "wrong.jsonl", [{"question": "w9 w3", "text": "w5"}])
    mistake(forefed_command("predict", result.folder, "--file", wrong), "no column 'context'")
    mistake(forefed_command("predict", result.folder), "--file")

    assert forefed_command("report", result.folder).status == 0
    page = (result.folder / "report.html").read_text()
    assert "Test F1" in page and "exact match" in page and "no answer at all 25.0 %" in page


def test_the_command_says_what_was_cut(
    world: World, tmp_path: Path, forefed_command: Command
) -> None:
    sets = world.sets(tmp_path, *world.qa, "strategy=fedavg", "rounds=1", "data.max_length=16")
    said = forefed_command("run", *options(sets))
    assert said.status == 0, said.err
    assert "texts dropped:" in said.out and "F1 0." in said.out and "exact match 0." in said.out


def test_a_plan_knows_the_head(world: World) -> None:
    config = world.config(Path("runs"), *world.qa)
    planned = Scene.model_validate({**scene_of_config(config), "batch": 3, "seq": 8})
    assert planned.labels == "spans"
    for layers in (None, 1):
        task = build(planned, layers)
        batch = batch_of(planned, task)
        assert task.head and set(task.head) <= set(assigned(task, planned))
        assert torch.isfinite(task.loss(task.params, batch))


def test_xquad_is_readable() -> None:
    path = data_folder("xquad_en") / "squad_v1_subset.jsonl.gz"
    task = QuestionAnswering()
    settings = DataSettings(source={"kind": "files", "path": path}, task=task, limit=100)
    table_ = settings.source.load()
    questions = task.texts([("training", table_.rows)], task.columns(table_.rows))[1][0]
    assert isinstance(questions, Questions) and len(questions) == 1190
    assert all(len(a) == 1 for a in questions.answers)
    assert len(set(task.groups(table_.rows))) == 240
