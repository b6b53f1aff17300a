"""The head in closed form of several labels and of numbers: pooled solutions, exact partitions,
choices of held-out rows, the same outside of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forefed
from federation import World
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Key
from forefed.run.build import answers, build
from forefed.run.start_result import load_begun
from forefed.start.answer import ALL
from forefed.start.solver import NARROW, Solver
from forefed.start.sums import STEP, Sums
from forefed.start.targets import SCALES, Labels, Numbers
from forefed.use import predict as use
from forefed.use.forget import forget

LABELS = Labels(("a", "b", "c"))
SCORES = Numbers(("0.0", "10.0"))
START = ("start=closed_form", "model.pooling=mean", "guard=none", "rounds=0")
KINDS = ("multilabel", "regression")


def rows(n: int = 60) -> tuple[torch.Tensor, Any, Any]:
    """Features on the grid, marks and numbers that depend on them."""
    x = (Key(3).normal((n, 5)).double() / STEP).round() * STEP
    marks = (x[:, :3] + 0.8 * Key(4).normal((n, 3)) > 0.4).long().numpy()
    numbers = (0.5 * x[:, 0] - 0.3 * x[:, 1] + 0.2 * Key(5).normal((n,))).clamp(-2, 2).numpy()
    return x, marks, numbers


def test_numbers_are_ridge_regression() -> None:
    x, _, y = rows()
    head = SCORES.head(Solver.of(Sums.of(x, SCORES.of(y)), SCORES.unit), ("ridge", 0.3), "counts")
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    weight = np.linalg.solve(z.T @ z + 0.3 * len(z) * np.eye(5), z.T @ (y - y.mean()))
    said = (x @ head.weight_CD.T + head.bias_C)[:, 0]
    np.testing.assert_allclose(said, z @ weight + y.mean(), atol=2 * SCORES.unit)


def test_a_label_is_a_discriminant_of_its_own() -> None:
    x, marks, _ = rows()
    n, share = len(x), 0.3
    head = LABELS.head(Solver.of(Sums.of(x, LABELS.of(marks))), ("discriminant", share), "counts")
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    for c in range(3):
        held = marks[:, c] > 0
        one, none, p = z[held].mean(0), z[~held].mean(0), held.mean()
        within = z - np.where(held[:, None], one, none)
        covariance = within.T @ within / n + share * np.eye(5)  # of a mean variance of 1
        weight = np.linalg.solve(covariance, one - none)
        logits = z @ weight - weight @ (one + none) / 2 + np.log(p / (1 - p))
        said = x @ head.weight_CD[c] + head.bias_C[c]
        np.testing.assert_allclose(said, logits, atol=1e-9)
    even = LABELS.head(Solver.of(Sums.of(x, LABELS.of(marks))), ("discriminant", share), "uniform")
    odds = torch.from_numpy(marks.mean(0) / (1 - marks.mean(0))).log()
    torch.testing.assert_close(head.bias_C - even.bias_C, odds)


def test_labels_that_nobody_or_everybody_has_are_named_and_harmless() -> None:
    x, marks, _ = rows()
    marks = np.concatenate([marks, 0 * marks[:, :1], 0 * marks[:, :1] + 1], 1)
    labels = Labels(("a", "b", "c", "never", "always"))
    total = Sums.of(x, labels.of(marks))
    one, other = labels.usable(total)
    assert one == "no client has a training row with never: the head cannot know it"
    assert other.startswith("every training row has the label always")
    head = labels.head(Solver.of(total), ("discriminant", 0.01), "counts")
    assert torch.isfinite(head.weight_CD).all() and not head.weight_CD[3:].abs().gt(1e-9).any()
    assert float(head.bias_C[3]) < -3 and float(head.bias_C[4]) > 3
    with pytest.raises(UserError, match="60 training rows with 0 labels"):
        labels.usable(Sums.of(x, labels.of(0 * marks)))
    with pytest.raises(UserError, match="one training row"):
        SCORES.usable(Sums.of(x[:1], SCORES.of(np.zeros(1))))


def test_a_label_that_one_feature_tells_does_not_make_weights_endless() -> None:
    x, marks, _ = rows()
    x[:, 4] = torch.from_numpy(marks[:, 0]).double()
    head = LABELS.head(Solver.of(Sums.of(x, LABELS.of(marks))), ("discriminant", 1e-9), "counts")
    assert torch.isfinite(head.weight_CD).all()
    assert float(head.weight_CD.abs().max()) < 100 / NARROW


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {**s, "y": -s["y"] - 1}, "counts of labels"),
        (lambda s: {**s, "y": s["y"] + 60}, "counts of labels"),
    ],
)
def test_sums_of_targets_that_no_rows_can_have(change: Any, match: str) -> None:
    x, marks, y = rows()
    parts = change(vars(Sums.of(x, LABELS.of(marks))))
    with pytest.raises(ProtocolError, match=match):
        LABELS.check(Sums(**parts))
    found = Sums.of(x, SCORES.of(y))
    SCORES.check(found)
    with pytest.raises(ProtocolError, match="not on the scale"):
        SCORES.check(Sums(**{**vars(found), "y": found.y + 130 * 2**16}))


def test_rows_that_a_sum_would_tell_apart_are_left_out() -> None:
    marks = np.array([[1, 0], [1, 0], [1, 1], [1, 0], [0, 0]])
    # one row has b; with it gone one row lacks a; with that gone all are alike
    assert LABELS.enough(marks, 2).tolist() == [0, 1, 3]
    assert LABELS.enough(marks, 1).tolist() == [0, 1, 2, 3, 4]
    assert len(SCORES.enough(np.zeros(4), 5)) == 0 and len(SCORES.enough(np.zeros(4), 4)) == 4


def test_held_out_rows_mix_a_head_and_words_exactly() -> None:
    n = 400
    f, w = Key(1).normal((n, 1)).double(), Key(2).normal((n, 1)).double()
    y = (0.5 * f + 2.0 * w + 0.25)[:, 0].numpy()
    found = SCORES.choose(SCORES.tried([f, 3 * f], w, y), [("ridge", 0.1), ("ridge", 1.0)])
    assert found.together == pytest.approx(0.5 if found.position == 0 else 0.5 / 3, rel=0.03)
    assert found.together * found.share == pytest.approx(2.0, rel=0.03)
    assert found.shift_with_words == pytest.approx((0.25,), abs=0.02)
    assert found.shares[1]["loss"] < 1e-3 < found.shares[0]["loss"]
    unlike = SCORES.choose(SCORES.tried([f], -w, y), [("ridge", 0.1)])
    assert unlike.share == 0 and unlike.shift_with_words == unlike.shift


def test_labels_are_chosen_by_micro_f1_and_then_calibrated() -> None:
    marks = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]] * 8)
    good = 4.0 * torch.from_numpy(marks).double() - 2.0
    tried = LABELS.tried([-good, 8 * good, good], None, marks)
    shapes = {n: tuple(x.shape) for n, x in tried.items()}
    assert shapes == LABELS.shapes(3, words=False)
    candidates = [("discriminant", x) for x in (0.1, 0.3, 1.0)]
    found = LABELS.choose(tried, candidates)
    assert found.position == 2 and found.tried[0]["micro_f1"] == 0.0
    assert found.tried[2]["micro_f1"] == 1.0 and found.scale in SCALES
    first = LABELS.choose(LABELS.tried([8 * good], None, marks), candidates[:1])
    assert first.scale == found.scale / 8
    words = LABELS.choose(LABELS.tried([-good], good, marks), candidates[:1])
    assert words.share > 1 and words.shares[-1]["micro_f1"] == 1.0


def sets(world: World, task: str, *more: str) -> list[str]:
    path = {"multilabel": world.tags, "regression": world.scores}[task]
    return [f"data.task={task}", f"data.source.path='{path}'", *START, *more]


@pytest.mark.parametrize("task", KINDS)
def test_the_head_is_the_same_bits_for_every_partition(
    task: str, world: World, tmp_path: Path
) -> None:
    heads = []
    for clients in (3, 7):
        more = ("data.client_test_fraction=0", f"partition.clients={clients}")
        skew = ("partition.kind=dirichlet", "partition.alpha=0.5") if clients == 7 else ()
        where = tmp_path / str(clients)
        begun = load_begun(world.run(where, *sets(world, task, *skew, *more)).folder)
        assert begun is not None
        heads.append(begun)
    assert heads[0].line["examples"] == heads[1].line["examples"] > 0
    assert all(torch.equal(heads[1].head[n], x) for n, x in heads[0].head.items())


@pytest.mark.parametrize("task", KINDS)
def test_a_run_solves_forgets_and_exports_them(task: str, world: World, tmp_path: Path) -> None:
    result = world.run(tmp_path, *sets(world, task, "start.words=300"))
    folder, begun = result.folder, load_begun(result.folder)
    assert begun is not None and begun.finished and begun.line["held_out"] > 0
    assert len(begun.line["shares"]) >= 2
    final, costs_nothing = result.summary["final"], result.summary["baseline"]["majority"]
    if task == "multilabel":
        assert final["micro_f1"] > costs_nothing
    else:
        assert final["rmse"] < costs_nothing
    texts = ["w5 w6 w7 w8", "w40", "w25 w26 " * 12]
    loaded = forefed.load(folder / "adapter", base=str(world.bert))
    inputs = loaded.tokenizer(texts, padding=True, truncation=True, max_length=512)
    with torch.no_grad():
        logits = loaded.model(**{n: torch.tensor(x) for n, x in inputs.items()}).logits
    said = list(use.predict(folder, texts))
    if task == "multilabel":
        chances = np.array([p.chances for p in said])
        np.testing.assert_allclose(logits.sigmoid().numpy(), chances, atol=1e-5)
    else:
        low, high = map(float, loaded.labels)
        numbers = low + (logits[:, 0].double().numpy() + 2) / 4 * (high - low)
        np.testing.assert_allclose([float(p.predicted) for p in said], numbers, rtol=1e-3)
    left = forget(folder, 2)
    federation = build(world.config(tmp_path, *sets(world, task, "start.words=300")))
    clients = [federation.data.population.client(c) for c in (0, 1, 3, 4, 5)]
    answer = answers(federation.config, federation.task, None)
    parts = [answer.sums_of({"rows": torch.tensor(ALL)}, c) for c in clients]
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    for name, x in vars(total).items():
        assert torch.equal(vars(left.total)[name], x)
    assert json.loads((folder / "start.json").read_text())["forgotten"] == [2]


@pytest.mark.parametrize(
    ("task", "settings", "match"),
    [
        ("multilabel", "start.solver=ridge", "set start.solver = 'discriminant'"),
        ("regression", "start.solver=discriminant", "set start.solver = 'ridge'"),
        ("regression", "start.prior=uniform", "set start.prior = 'counts'"),
    ],
)
def test_settings_that_say_nothing_about_them_are_refused(
    task: str, settings: str, match: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=match):
        world.run(tmp_path, *sets(world, task, settings))


def test_pairs_with_a_number_have_no_words(world: World, tmp_path: Path) -> None:
    texts = [f"w{5 + i % 9} w{20 + i % 7}" for i in range(60)]
    lines = [{"text1": a, "text2": b, "score": len(a) + i % 5} for i, (a, b) in
             enumerate(zip(texts, texts[3:] + texts[:3], strict=True))]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = ("data.task=regression", f"data.source.path='{path}'", *START)
    result = world.run(tmp_path, *more)
    begun = load_begun(result.folder)
    assert begun is not None and begun.words is None and begun.line["shares"] == []
    assert "Texts were cut at 12 tokens" in (result.folder / "adapter" / "README.md").read_text()
