"""Tuning: a grid per method on validation rows; no test row is read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from commands import plain
from federation import CLASSES, World, write_lines
from forefed.compare import compare, schedule
from forefed.compare.grid import cells_of
from forefed.compare.study import check_study
from forefed.compare.tune import choose, tuning_cells
from forefed.config.config import merge
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.prepare import Prepared, prepare
from forefed.models.load import load_tokenizer
from forefed.run.record import read_json
from studies import tiny_study


def prepared(world: World, source: Path | None, seed: int, *more: str) -> Prepared:
    sets = [f"data.source.path='{source}'"] if source else []
    config = world.config(Path("unused"), *sets, *more)
    key = Key(seed).fold("data")
    return prepare(config.data, config.partition, load_tokenizer(config.model), key, None)


def texts_of(examples: object) -> list[tuple[int, ...]]:
    tokens, offsets = examples.tokens, examples.offsets  # type: ignore[attr-defined]
    return [tuple(tokens[a:b]) for a, b in itertools.pairwise(offsets)]


@pytest.fixture
def different_texts(tmp_path: Path) -> Path:
    """60 rows, no two with the same words."""
    rows = [
        {"text": f"w{4 + i % 40} w{5 + i // 40} w{6 + i % 7}", "label": CLASSES[i % 3]}
        for i in range(60)
    ]
    return write_lines(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("limit", [None, 30])
def test_validation_rows_are_never_test_rows(
    world: World, different_texts: Path, limit: int | None
) -> None:
    """Neither of this seed nor of any other, as the split has a seed of its own."""
    more = ["data.split_seed=0", *([f"data.limit={limit}"] if limit else [])]
    tuned = prepared(world, different_texts, 0, *more, "data.test_on=validation")
    read = texts_of(tuned.population.examples) + texts_of(tuned.test)
    for seed in range(3):
        final = prepared(world, different_texts, seed, *more)
        tests = set(texts_of(final.test))
        assert tests and not tests & set(read)
        assert sorted(read) == sorted(texts_of(final.population.examples))
    loose = [set(texts_of(prepared(world, different_texts, s).test)) for s in range(3)]
    assert loose[0] != loose[1], "without a split seed every seed has a test set of its own"


def test_a_given_test_split_is_not_opened_to_validation(
    world: World, different_texts: Path, tmp_path: Path
) -> None:
    """Test rows with a label of their own would add a class if anything read them."""
    rows = [{"text": "w4 w4 w4 w4 w4", "label": "unheard-of"} for _ in range(5)]
    given = f"data.source.test='{write_lines(tmp_path / 'given.jsonl', rows)}'"
    with pytest.raises(UserError, match="unheard-of"):  # whatever reads them says so
        prepared(world, different_texts, 0, given)
    tuned = prepared(world, different_texts, 0, given, "data.test_on=validation")
    assert tuned.label_names == CLASSES
    seen = texts_of(tuned.population.examples) + texts_of(tuned.test)
    assert len(seen) == 60


def test_the_best_on_validation_is_taken(world: World, tmp_path: Path, fake_cells: None) -> None:
    """The stand-in's quality is 1 - |lr - 0.1|: 0.1 is best, 0.5 is on the edge of its grid."""
    rates = {"a": [0.01, 0.1, 1.0], "b": [0.5, 1.0], "c": [13, 0.2]}
    methods = {name: {"tune": {"client.optimiser.lr": values}} for name, values in rates.items()}
    study = tiny_study(world, tmp_path, "rounds=7", methods={**methods, "plain": {}}, seeds=[5, 6])
    tuning = tuning_cells(study)
    assert len(tuning) == 7 and {c.seed for c in tuning} == {5}
    for cell in tuning:
        config = cell.config
        assert config.data.test_on == "validation" and config.data.split_seed == 0
        assert config.rounds == 3  # a third of 7, rounded up
        assert cell.folder.parent.name == "tuning"
    outcome = compare(study)
    assert list(outcome.failed) == ["c-client.optimiser.lr_13-seed5"]
    finals = {c.method: c for c in cells_of(study, {}) if c.seed == 5}
    assert finals["plain"].finished
    results = read_json(study.folder / "results.json")
    chosen = {c["method"]: c for c in results["tuning"]}
    assert {m: c["best"]["client.optimiser.lr"] for m, c in chosen.items()} == {
        "a": 0.1,
        "b": 0.5,
        "c": 0.2,
    }
    assert chosen["a"]["edges"] == [] and chosen["b"]["edges"] == ["client.optimiser.lr"]
    assert chosen["a"]["runs"] == 3 and chosen["a"]["rounds"] == 3
    assert not any(c.config.data.test_on != "test" for c in finals.values())
    final = study.folder / "runs" / "a-client.optimiser.lr_0.1-seed6"
    assert read_json(final / "config.json")["data"]["test_on"] == "test"
    said = plain((study.folder / "results.md").read_text())
    assert "3 runs of 3 rounds" in said and "0.01: 91.0 %" in said


def test_a_method_without_any_tuning_result_is_left_out(
    world: World, tmp_path: Path, fake_cells: None
) -> None:
    methods = {"bad": {"tune": {"client.optimiser.lr": [13]}}, "good": {}}
    study = tiny_study(world, tmp_path, methods=methods, seeds=1, reference="good")
    outcome = compare(study)
    assert "bad-seed0" in outcome.failed and "unlucky" in outcome.failed["bad-seed0"]
    assert "no tuning run had a result" in (study.folder / "results.md").read_text()


def test_one_data_set_is_tuned_on_and_the_others_take_its_choices(
    world: World, tmp_path: Path, fake_cells: None
) -> None:
    methods = {"a": {"tune": {"client.optimiser.lr": [0.01, 0.1]}}, "plain": {}}
    datasets = {"one": {}, "two": {"data": {"max_length": 9}}}
    more = {"methods": methods, "datasets": datasets, "seeds": 1}
    study = tiny_study(world, tmp_path, **more, tuning={"on": "two"})
    assert [c.dataset for c in tuning_cells(study)] == ["two", "two"]
    assert not compare(study).failed
    for name in ("one", "two"):
        assert (study.folder / "runs" / f"a-{name}-client.optimiser.lr_0.1-seed0").exists()
        assert (study.folder / "runs" / f"plain-{name}-seed0").exists()
    with pytest.raises(UserError, match=r"tuning\.on: no data set 'three'"):
        check_study(tiny_study(world, tmp_path, **more, tuning={"on": "three"}))


def test_the_smallest_loss_on_validation_is_taken_where_that_is_asked_for(
    world: World, tmp_path: Path, fake_cells: None
) -> None:
    """The stand-in's loss grows with the rate, whatever its quality."""
    methods = {"a": {"tune": {"client.optimiser.lr": [0.1, 0.01, 1.0]}}}
    study = tiny_study(world, tmp_path, methods=methods, seeds=1, tuning={"by": "loss"})
    assert not compare(study).failed
    (chosen,) = read_json(study.folder / "results.json")["tuning"]
    assert chosen["best"] == {"client.optimiser.lr": 0.01}
    assert [set(t) for t in chosen["tried"]] == [{"settings", "loss"}] * 3
    assert "0.01: loss 0." in plain((study.folder / "results.md").read_text())


def test_tuning_on_test_rows_is_refused(world: World, tmp_path: Path, fake_cells: None) -> None:
    study = tiny_study(world, tmp_path, methods={"a": {"tune": {"cohort": [2, 3]}}}, seeds=1)
    cells = tuning_cells(study)
    schedule.run_cells(cells, None, tmp_path / "logs", schedule.Watch())
    path = cells[1].folder / "config.json"
    config = read_json(path)
    path.write_text(json.dumps(merge(config, {"data": {"test_on": "test"}})))
    with pytest.raises(UserError, match="tested on test rows"):
        choose(study, cells, {})
