"""Several labels per text, and numbers: read, learned, tested, used and exported like the rest."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn.functional import l1_loss

import forefed
from commands import Command
from federation import CLASSES, Interrupted, StopAfter, World, lines, write_lines
from forefed.config.compat import check
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Batch
from forefed.data.sources import Files
from forefed.data.tasks import TASKS as ALL_TASKS
from forefed.data.tasks import MultiLabel as MultiLabelTask
from forefed.data.tasks import Regression as RegressionTask
from forefed.models.objectives import OBJECTIVES, MultiLabel, Regression
from forefed.run import configure, run
from forefed.strategies import STRATEGIES
from forefed.use.predict import predict
from forefed.wire import CODECS
from test_metrics import examples_of, sums_of

LABELS = MultiLabel(("a", "b", "c"))
SCALE = Regression(("1.0", "5.0"))

NEEDS = {
    "fedkseed": ["directions.size=64"],
    "fwdllm": ["trigger.at_most=2", "directions.k=2"],
    "baffle": ["directions.k=2"],
    "dadao": ["client.batch_size=all"],
    "fzoos": ["client.batch_size=all"],
}


def task_sets(world: World, task: str) -> list[str]:
    path = {"multilabel": world.tags, "regression": world.scores}[task]
    return [f"data.task={task}", f"data.source.path='{path}'"]


def test_labels_by_hand() -> None:
    """a is found once of two, b is said once too often, c never."""
    held = np.array([[1, 0, 0], [1, 1, 0]])
    logits = torch.tensor([[2.0, 2.0, -2.0], [-2.0, 2.0, -2.0]]).double()
    sums = sums_of(LABELS, logits, held)
    found = LABELS.results(sums)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["exact_match"] == 0 and found["label_accuracy"] == pytest.approx(4 / 6)
    by_class = LABELS.details(sums)["by_class"]
    assert [c["examples"] for c in by_class] == [2, 1, 0]
    assert [c["recall"] for c in by_class] == [0.5, 1.0, None]
    assert [c["precision"] for c in by_class] == [1.0, 0.5, None]
    loss = LABELS.losses(logits, Batch({}, torch.from_numpy(held)))
    by_hand = [(math.log1p(math.exp(-2)) * 2 + math.log1p(math.exp(2))) / 3] * 2
    assert loss.tolist() == pytest.approx(by_hand)
    said = LABELS.answers(logits - 4 * torch.tensor([[0.0], [1.0]]), examples_of(held), range(2))
    assert said == ["a, b", "(no label)"]


@pytest.mark.parametrize("seed", range(3))
def test_labels_as_scikit_learn_has_them(seed: int) -> None:
    held = Key(seed).fold("held").integers(200, 2).reshape(40, 5)
    logits = Key(seed).fold("logits").normal((40, 5)).double()
    said = (logits > 0).numpy().astype(int)
    found = MultiLabel(tuple("abcde")).results(
        sums_of(MultiLabel(tuple("abcde")), logits, held, parts=3)
    )
    expected = {
        "micro_f1": sklearn_metrics.f1_score(held, said, average="micro"),
        "macro_f1": sklearn_metrics.f1_score(held, said, average="macro"),
        "exact_match": sklearn_metrics.accuracy_score(held, said),
        "label_accuracy": 1 - sklearn_metrics.hamming_loss(held, said),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_numbers_by_hand_and_as_scipy_has_them() -> None:
    """-2 ... 2 stands for 1 ... 5: 3, 4, 2 said of 3, 5, 1."""
    true, said = np.array([0.0, 2.0, -2.0]), torch.tensor([[0.0], [1.0], [-1.0]]).double()
    sums = sums_of(SCALE, said, true)
    found = SCALE.results(sums)
    assert found["rmse"] == pytest.approx(math.sqrt(2 / 3)) and found["mae"] == pytest.approx(2 / 3)
    assert found["pearson"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)
    assert SCALE.answers(said, examples_of(true), range(3)) == ["3", "4", "2"]
    assert SCALE.details(sums)["scatter"] == [[3.0, 3.0], [5.0, 4.0], [1.0, 2.0]]
    low, high = SCALE.interval(sums)
    assert low < found["rmse"] < high
    assert SCALE.losses(said, Batch({}, torch.from_numpy(true))).tolist() == [0.0, 1.0, 1.0]
    same = SCALE.results(sums_of(SCALE, torch.zeros(3, 1), true))
    assert same["pearson"] == same["spearman"] == 0
    true, said = Key(1).normal((50,)).double().round(decimals=1), Key(2).normal((50, 1)).double()
    found = SCALE.results(sums_of(SCALE, said + true[:, None], true.numpy(), parts=4))
    ours = (said[:, 0] + true).numpy()
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(ours, true).statistic)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(ours, true).statistic)


def test_what_costs_nothing_is_learned_from_the_training_rows() -> None:
    train = examples_of(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0]]))
    test = examples_of(np.array([[1, 0, 0], [0, 1, 0]]))
    # saying a of all: 2 * 1 / (2 held + 2 said)
    assert LABELS.constant(train, test) == pytest.approx(0.5)
    train, test = examples_of(np.array([-2.0, 0.0, -1.0])), examples_of(np.array([0.0, 1.0]))
    assert SCALE.constant(train, test) == pytest.approx(math.sqrt((1 + 4) / 2))


TASKS = ("multilabel", "regression")
PAIRS = [(method, TASKS[i % 2]) for i, method in enumerate(STRATEGIES)]
PAIRS += [(method, task) for task in TASKS for method in ("spry", "fedmezo")]


@pytest.mark.parametrize(("method", "task"), sorted(set(PAIRS)))
def test_every_strategy_learns_them(method: str, task: str, world: World, tmp_path: Path) -> None:
    codec = STRATEGIES[method].sections.get("codec", {}).get("kind", "dense")
    fewer = ["directions.head_k=8"] if CODECS[codec].payload == "projections" else []
    own = ["adapter.u=6"] if method == "spry" else []
    sets = [f"strategy={method}", "rounds=1", *fewer, *own]
    result = world.run(tmp_path, *sets, *task_sets(world, task), *NEEDS.get(method, []))
    line = lines(result.folder, "rounds.jsonl")[0]
    assert line["steps"] > 0 and line["skipped"] == 0 and line["fallbacks"] == {}


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_they_are_learned_and_used(
    task: str, world: World, tmp_path: Path, forefed_command: Command
) -> None:
    """A run that is stopped and goes on learns; predict, card and report know the task."""
    sets = [*task_sets(world, task), "strategy=fedavg", "rounds=12", "cohort=6", "adapter=lora"]
    sets += ["adapter.r=2", "client.optimiser=adam", "client.optimiser.lr=0.02", "name=learned"]
    sets += ["client.max_steps=4", "client.batch_size=8", "evaluate.every=12"]
    config = world.config(tmp_path, *sets, "evaluate.clients=6")
    with pytest.raises(Interrupted):
        run(config, watcher=StopAfter(3))
    result = run(config, resume=True)
    losses = [line["loss"] for line in lines(result.folder, "rounds.jsonl")]
    assert losses[-1] < 0.9 * losses[0]
    said = forefed_command("predict", result.folder, "w5 w6 w7 w8")
    assert said.status == 0, said.err
    if task == "multilabel":
        names = said.out.split("  ")[0].split(", ")
        assert set(names) <= {*CLASSES, "long", "(no label)"}
    else:
        assert math.isfinite(float(said.out.split("\t")[0].split()[0]))
    assert forefed_command("report", result.folder).status == 0
    page = (result.folder / "report.html").read_text()
    assert {"multilabel": "micro-F1", "regression": "RMSE"}[task] in page
    card = (result.folder / "adapter" / "README.md").read_text()
    assert {"multilabel": ".sigmoid()", "regression": "# of the scale"}[task] in card
    assert ("## Labels" in card) == (task == "multilabel")
    kind = {"multilabel": "multi_label_classification", "regression": "regression"}[task]
    config = json.loads((result.folder / "adapter" / "config.json").read_text())
    assert config["problem_type"] == kind
    table = tmp_path / "said.jsonl"
    asked = write_lines(tmp_path / "asked.jsonl", [{"text": "w5 w6"}, {"text": "w9"}])
    done = forefed_command("predict", result.folder, "--file", asked, "--output", table)
    assert done.status == 0, done.err
    row = lines(tmp_path, "said.jsonl")[0]
    assert ("p_long" in row) == (task == "multilabel")


def encode(task: Any, rows: list[dict[str, Any]], tmp_path: Path, world: World) -> Any:
    from forefed.models.load import load_tokenizer

    path = write_lines(tmp_path / "rows.jsonl", rows)
    tokenizer = load_tokenizer(configure(sets=world.sets(tmp_path)).model)
    return task.encode(Files(path=path).load(), tokenizer, 12, 0.25, Key(0))


@pytest.mark.parametrize("form", ["lists", "joined"])
def test_labels_are_read_from_lists_and_from_texts(form: str, world: World, tmp_path: Path) -> None:
    tags = [["tree", "long"], [], ["metal"], ["tree"], ["long"], ["metal", "tree"]] * 2
    held = [t if form == "lists" else " , ".join(t) for t in tags]
    rows = [{"text": f"w{i + 4}", "tags": t} for i, t in enumerate(held)]
    found = encode(MultiLabelTask(), rows, tmp_path, world)
    assert found.label_names == ("long", "metal", "tree")
    assert len(found.train) + len(found.test) == 12
    all_marks = np.concatenate([found.train.labels, found.test.labels])
    assert sorted(map(tuple, all_marks)) == sorted(
        tuple(int(name in t) for name in found.label_names) for t in tags
    )
    given = encode(MultiLabelTask(labels=["tree", "metal", "long", "new"]), rows, tmp_path, world)
    assert (
        given.label_names == ("tree", "metal", "long", "new") and given.train.labels.shape[1] == 4
    )


def test_numbers_are_read_with_their_scale(world: World, tmp_path: Path) -> None:
    rows = [{"text": f"w{i + 4}", "score": str(i)} for i in range(9)]
    found = encode(RegressionTask(), rows, tmp_path, world)
    assert found.label_names == ("0.0", "8.0")
    assert sorted(np.concatenate([found.train.labels, found.test.labels])) == pytest.approx(
        np.linspace(-2, 2, 9)
    )
    wider = encode(RegressionTask(range=(-8, 8)), rows, tmp_path, world)
    assert wider.train.labels.min() >= 0 and wider.label_names == ("-8.0", "8.0")
    pairs = [{"sentence1": "w4", "sentence2": f"w{i + 5}", "score": i} for i in range(8)]
    found = encode(RegressionTask(), pairs, tmp_path, world)
    assert set(found.train.lengths()) == {5}  # two texts and three special tokens


MISTAKES: list[tuple[Any, list[dict[str, Any]], str]] = [
    (MultiLabelTask(), [{"text": "w4", "tags": []}] * 4, "no training row has a label"),
    (MultiLabelTask(labels=["a"]), [{"text": "w4", "tags": ["b"]}] * 4, "'b' in row 1"),
    (MultiLabelTask(), [{"text": "w4", "tags": 3}] * 4, "no list of labels"),
    (MultiLabelTask(), [{"text": "w4", "note": "x"}] * 4, "data.task.label: cannot tell"),
    (RegressionTask(), [{"text": "w4", "score": 1}] * 4, "nothing to learn"),
    (RegressionTask(), [{"text": "w4", "score": x} for x in ("1", "?", "3")], "row 2 .* no number"),
    (RegressionTask(range=(0, 5)), [{"text": "w4", "score": x} for x in (1, 9)], "outside of 0"),
]


@pytest.mark.parametrize(("task", "rows", "said"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistakes_name_the_row_and_the_remedy(
    task: Any, rows: list[dict[str, Any]], said: str, world: World, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        encode(task, rows, tmp_path, world)


def test_a_scale_has_its_lower_end_first(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lower end first"):
        world.config(tmp_path, "data.task=regression", "data.task.range=[5, 1]")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_sites_are_told_what_they_cannot_see(task: str, world: World, tmp_path: Path) -> None:
    sets = [f"data.task={task}", "partition=sites", "deadline_s=60"]
    sets += ["partition.names=['a', 'b', 'c']"]
    name = {"multilabel": "data.task.labels", "regression": "data.task.range"}[task]
    with pytest.raises(UserError, match=name):
        check(world.config(tmp_path, *sets), deployed=True)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_skewed_clients_differ_in_what_they_hold(task: str, world: World, tmp_path: Path) -> None:
    """A Dirichlet partition of little alpha by first label, or by fifths of the numbers."""
    from forefed.data.prepare import prepare
    from forefed.models.load import load_tokenizer

    sets = [*task_sets(world, task), "partition=dirichlet", "partition.clients=4"]
    found = {}
    for alpha in ("0.1", "100"):
        config = world.config(tmp_path, *sets, f"partition.alpha={alpha}")
        tokenizer = load_tokenizer(config.model)
        data = prepare(config.data, config.partition, tokenizer, Key(0), None)
        strata = config.data.task.strata(data.population.examples.labels)
        shares = [
            np.bincount(strata[c.train], minlength=strata.max() + 1) / max(len(c.train), 1)
            for c in (data.population.client(i) for i in range(4))
        ]
        found[alpha] = float(np.std(shares, axis=0).mean())
    assert found["0.1"] > 1.5 * found["100"]


class Absolute(Regression):
    """A number, learned by its absolute error."""

    head: ClassVar[str] = "absolute"

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        said = logits.flatten().double()
        return l1_loss(said, batch.labels.double(), reduction="none")


class AbsoluteTask(RegressionTask):
    """One number per text, learned by its absolute error."""

    kind: Literal["absolute"] = "absolute"  # type: ignore[assignment]
    head: ClassVar[str] = "absolute"


def test_a_task_with_a_head_of_its_own_is_two_classes(world: World, tmp_path: Path) -> None:
    sets = ["strategy=fedavg", f"data.source.path='{world.scores}'", "rounds=1"]
    try:
        forefed.register(AbsoluteTask)
        with pytest.raises(UserError, match="'absolute' has no objective"):
            world.run(tmp_path, *sets, "data.task=absolute", "name=none")
        forefed.register(Absolute)
        own = world.run(tmp_path, *sets, "data.task=absolute", "name=own")
        assert math.isfinite(float(next(iter(predict(own.folder, ["w5 w6"]))).predicted))
    finally:
        ALL_TASKS._entries._entries.pop("absolute", None)
        OBJECTIVES._entries.pop("absolute", None)
    usual = world.run(tmp_path, *sets, "data.task=regression", "name=usual")
    (one,), (other,) = (lines(r.folder, "evaluations.jsonl")[-1:] for r in (own, usual))
    assert one.keys() == other.keys() and one["rmse"] != other["rmse"]
    with pytest.raises(UserError, match="is no Objective"):
        OBJECTIVES.add(int)  # type: ignore[type-var]
