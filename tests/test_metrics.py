"""What a model is worth: every metric by hand, and as scikit-learn has it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from federation import World, lines
from forefed.core.intervals import Ratio, wilson
from forefed.core.keys import Key
from forefed.core.metrics import Measures, Metric
from forefed.core.shortfalls import shortfalls
from forefed.core.types import Batch
from forefed.data.examples import Examples
from forefed.models.objectives import OBJECTIVES, Classes, Objective, Sums, calibration, merge
from forefed.report.read import read_run
from forefed.run.evaluate import scores, spread


def examples_of(labels: np.ndarray) -> Examples:
    n = len(labels)
    ones = np.ones(n, dtype=np.int64)
    return Examples(ones.astype(np.int32), None, np.arange(n + 1), labels, ones, pad_id=0)


def sums_of(objective: Objective, logits: torch.Tensor, labels: np.ndarray, parts: int = 1) -> Sums:
    """What ``Task.evaluate`` sums, from logits that are given."""
    examples = examples_of(labels)
    found = []
    for rows in np.array_split(np.arange(len(labels)), parts):
        batch = Batch({}, torch.from_numpy(labels[rows]))
        some = logits[rows]
        loss = float(objective.loss_sum(some, batch))
        sums = {"loss_sum": loss, "weight": float(len(rows)), "n": float(len(rows))}
        found.append({**sums, **objective.counts(some, examples, rows)})
    return merge(found)


def logits_for(said: np.ndarray, classes: int, sure: float = 4.0) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(torch.from_numpy(said), classes).double()


THREE = Classes(("a", "b", "c"))


def test_classes_by_hand() -> None:
    """Four of a, two of b, none of c; c is said once."""
    true, said = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 2])
    sums = sums_of(THREE, logits_for(said, 3), true)
    found = THREE.results(sums)
    assert found["accuracy"] == pytest.approx(4 / 6)
    # F1: a 6/7, b 2/4, c 0 of 1 said
    assert found["macro_f1"] == pytest.approx((6 / 7 + 1 / 2 + 0) / 3)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    # n * right - sum true * said = 24 - (4*3 + 2*2); of sqrt((36 - 14) * (36 - 20))
    assert found["mcc"] == pytest.approx(8 / math.sqrt(22 * 16))
    sure = math.exp(4) / (math.exp(4) + 2)  # one bin: sure of all, right in 4 of 6
    assert found["calibration_error"] == pytest.approx(sure - 4 / 6)
    details = THREE.details(sums)
    assert details["confusion"] == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert [c["recall"] for c in details["by_class"]] == [0.75, 0.5, None]
    assert [c["precision"] for c in details["by_class"]] == [1.0, 0.5, 0.0]
    assert details["calibration"] == [[6.0, round(sure, 4), round(4 / 6, 4)]]
    assert THREE.interval(sums) == wilson(4, 6)


@pytest.mark.parametrize("seed", range(5))
def test_classes_as_scikit_learn_has_them(seed: int) -> None:
    true = Key(seed).fold("true").integers(60, 5)
    logits = Key(seed).fold("logits").normal((60, 5)).double()
    said = logits.argmax(1).numpy()
    objective = Classes(tuple("abcde"))
    found = objective.results(sums_of(objective, logits, true))
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(true, said),
        "macro_f1": sklearn_metrics.f1_score(true, said, average="macro"),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(true, said),
        "mcc": sklearn_metrics.matthews_corrcoef(true, said),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_one_class_said_of_all_has_no_correlation() -> None:
    true = np.array([0, 1, 2])
    found = THREE.results(sums_of(THREE, logits_for(np.array([1, 1, 1]), 3), true))
    assert found["mcc"] == 0 and found["macro_f1"] == pytest.approx(0.5 / 3)


def test_sums_of_parts_are_the_sums_of_all() -> None:
    true, logits = Key(3).integers(40, 3), Key(4).normal((40, 3)).double()
    whole, parts = sums_of(THREE, logits, true), sums_of(THREE, logits, true, parts=7)
    assert scores(THREE, parts) == pytest.approx(scores(THREE, whole), abs=1e-12)


def test_calibration_by_hand() -> None:
    """Two bins: 0.9 sure and right once of two, 0.5 sure and right."""
    sums = calibration.bins(np.array([0.9, 0.9, 0.5]), np.array([True, False, True]))
    assert calibration.error(sums) == pytest.approx((abs(1.8 - 1) + abs(0.5 - 1)) / 3)
    assert calibration.curve(sums) == [[1.0, 0.5, 1.0], [2.0, 0.9, 0.5]]
    assert calibration.error(calibration.bins(np.array([math.nan]), np.array([False]))) == 0.0


def test_the_losses_of_examples_add_up_to_the_loss() -> None:
    labels, logits = Key(5).integers(9, 3), Key(6).normal((9, 3))
    batch = Batch({}, torch.from_numpy(labels))
    each = THREE.losses(logits, batch)
    assert each.shape == (9,)
    by_hand = -logits.log_softmax(1)[torch.arange(9), labels]
    torch.testing.assert_close(each, by_hand)
    torch.testing.assert_close(each.sum(), THREE.loss_sum(logits, batch))
    words = torch.tensor([[1, 2, 3], [1, 2, -100]])
    lm, spans = OBJECTIVES["causal_lm"](), OBJECTIVES["spans"]()
    logits = Key(7).normal((2, 3, 4))
    batch = Batch({"attention_mask": torch.ones(2, 4)}, words)
    assert lm.losses(logits, batch).shape == (2,)
    torch.testing.assert_close(lm.losses(logits, batch).sum(), lm.loss_sum(logits, batch))
    batch = Batch({"attention_mask": torch.ones(2, 4)}, torch.tensor([[0, 1], [-100, -100]]))
    each = spans.losses(Key(8).normal((2, 2, 4)), batch)
    assert each[0] > 0 and each[1] == 0


def test_wilson_by_hand_and_at_both_ends() -> None:
    low, high = wilson(8, 10)  # Wilson 1927 by hand: (0.8 + 0.19207) / 1.38415 -+ 0.22641
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20)[0] == 0 < wilson(0, 20)[1] < 0.17
    assert wilson(20, 20)[1] == 1 > wilson(20, 20)[0] > 0.83 and wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says() -> None:
    covered = 0
    for i in range(400):
        b = 1 + Key(i).uniform((60,)).double()
        a = b * 0.3 + 0.2 * Key(i).fold("a").normal((60,)).double()
        ends = Ratio(60, *(float(x.sum()) for x in (a, b, a * a, a * b, b * b))).interval()
        assert ends is not None
        covered += ends[0] <= 0.3 <= ends[1]
    assert 0.91 < covered / 400 < 0.985
    assert Ratio(1, 1, 1, 1, 1, 1).interval() is None


def test_the_spread_over_clients_by_hand() -> None:
    eleven = [i / 10 for i in range(11)]
    assert spread(eleven, 1) == pytest.approx(
        {"client_mean": 0.5, "client_worst": 0.0, "client_decile": 0.1}
    )
    assert spread(eleven, -1) == pytest.approx(
        {"client_mean": 0.5, "client_worst": 1.0, "client_decile": 0.9}
    )
    assert spread([], 1) == {}


def test_descriptors_survive_the_record_and_decide() -> None:
    for objective in OBJECTIVES.values():
        measures = objective.measures
        assert Measures.of_json(json.loads(json.dumps(measures.to_json()))) == measures
        assert len({m.key for m in measures.metrics}) == len(measures.metrics)
    assert Measures.of_json({"metrics": [{"key": 1, "wrong": 2}], "terms": ""}) is None
    error = Metric("x", "error", "number", higher_is_better=False)
    assert error.better({"x": 1.0}, {"x": 2.0}) and not error.better({"x": None}, {"x": 2.0})
    assert error.better({"x": 1.0}, {"x": math.nan})


SHORT: list[tuple[dict[str, object], dict[str, object], dict[str, object], list[str]]] = [
    # last evaluation, best one, what costs less, what is said
    ({"accuracy": 0.8}, {}, {"majority": 0.5, "untrained": 0.3, "probe": None}, []),
    ({"accuracy": 0.5, "low": 0.4, "high": 0.6}, {}, {"majority": 0.55}, []),
    (
        {"accuracy": 0.5, "low": 0.45, "high": 0.55},
        {"round": 10, "accuracy": 0.8},
        {"majority": 0.6, "closed_form": 0.9, "untrained": 0.56},
        [
            "worse than closed form, 0.900: what costs less does more",
            "round 10 was better, 0.800: end there",
            "worse than the most frequent class, 0.600: nothing is learnt",
            "worse than untrained, 0.560: training has harmed",
        ],
    ),
    (
        {"accuracy": 0.5, "low": 0.45, "high": 0.55},
        {},
        {"majority": 0.4, "head alone": 0.56},
        ["worse than head alone, 0.560: the rounds have harmed"],
    ),
    ({"accuracy": 0.5, "low": 0.45, "high": 0.55}, {}, {"head alone": 0.54}, []),
    ({"accuracy": math.nan}, {}, {"majority": 0.5}, ["the last evaluation is no number"]),
]


@pytest.mark.parametrize(("final", "best", "baseline", "said"), SHORT)
def test_a_run_that_falls_short_is_told_so_with_a_remedy(
    final: dict[str, object],
    best: dict[str, object],
    baseline: dict[str, object],
    said: list[str],
) -> None:
    found = shortfalls(Classes.measures, final, best or {"round": 1, **final}, baseline)
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))
    errors = Measures((Metric("rmse", "RMSE", "number", higher_is_better=False, chance="mean"),))
    more = shortfalls(errors, {"rmse": 2.0}, {"round": 1, "rmse": 2.0}, {"majority": 1.5})
    assert len(more) == 1 and more[0].startswith("worse than mean, 1.500")


def test_a_run_states_what_it_measures_and_the_majority_of_its_training_rows(
    world: World, tmp_path: Path
) -> None:
    result = world.run(tmp_path, "strategy=fedavg", "rounds=1", "evaluate.clients=6")
    run = read_run(result.folder)
    assert run.measures == Classes.measures and run.metric == Classes.measures.decides
    line = next(e for e in lines(result.folder, "evaluations.jsonl") if e["split"] == "clients")
    assert line["client_worst"] <= line["client_decile"] <= line["client_mean"]
    details = json.loads((result.folder / "details.json").read_text())
    assert details["round"] == 1
    confusion = np.array(details["confusion"])
    assert np.trace(confusion) / confusion.sum() == run.quality(run.final)
    assert confusion.sum() == run.final["n"]


def test_the_majority_is_of_the_training_rows() -> None:
    train, test = examples_of(np.array([0, 0, 1])), examples_of(np.array([1, 1, 1, 0]))
    assert dataclasses.replace(THREE).constant(train, test) == 1 / 4
