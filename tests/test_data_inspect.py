"""What ``forefed init`` is told about somebody's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corpus_files import make_files
from forefed.core.errors import UserError
from forefed.data.inspect import describe
from forefed.data.label_checks import kind_of

NOTE = "the note number {i} says more than a few words"
SITES = ["north", "north", "south", "east"]


@pytest.mark.parametrize(
    ("columns", "task", "settings", "owners"),
    [
        (
            {"text": NOTE, "label": ["a", "b"], "site": SITES},
            "classification",
            {"text": "text", "label": "label"},
            ["site"],
        ),
        (
            {"premise": NOTE, "hypothesis": NOTE, "label": [0, 1, 2]},
            "pairs",
            {"text1": "premise", "text2": "hypothesis", "label": "label"},
            [],
        ),
        (
            {"text1": NOTE, "text2": NOTE, "score": [0.5, 1.25, 4.0]},
            "regression",
            {"text1": "text1", "text2": "text2", "label": "score"},
            [],
        ),
        (
            {"text": NOTE, "labels": ["heat,noise", "heat", "noise"]},
            "multilabel",
            {"text": "text", "label": "labels"},
            [],
        ),
        (
            {"text": NOTE, "labels": [["heat", "noise"], ["heat"]]},
            "multilabel",
            {"text": "text", "label": "labels"},
            [],
        ),
        ({"note": NOTE, "hospital_id": [1, 2, 3]}, "causal_lm", {"text": "note"}, ["hospital_id"]),
        (
            {"prompt": NOTE, "response": "answer {i} in words", "id": "{i}"},
            "causal_lm",
            {"text": "response", "prompt": "prompt"},
            [],
        ),
        (
            {"remark": NOTE, "kind of fault": ["leak", "noise", "heat"], "ward": ["a", "b"]},
            "classification",
            {"text": "remark", "label": "kind of fault"},
            ["ward"],
        ),
        (  # a long name that comes again and again is no text
            {"sum": "note {i}", "kind": ["leak", "noise"], "who": ["A Team <a@b.c>" * 3, "B" * 90]},
            "classification",
            {"text": "sum", "label": "kind"},
            ["who"],
        ),
        (
            {
                "sum": "note {i}",
                "kind": ["leak", "noise"],
                "maintainer": "somebody {i} of the team",
            },
            "classification",
            {"text": "sum", "label": "kind"},
            [],
        ),
        (
            {"question": NOTE, "context": NOTE, "answer": "more", "answer_start": 5},
            "qa",
            {"question": "question", "context": "context", "answer": "answer"},
            [],
        ),
    ],
)
def test_the_task_and_its_columns_are_guessed(
    columns: dict[str, Any], task: str, settings: dict[str, str], owners: list[str], tmp_path: Path
) -> None:
    make_files(tmp_path, {"rows.jsonl": {"columns": columns, "n": 60}})
    found = describe(tmp_path / "rows.jsonl")
    assert found.task == task and found.settings == {"kind": task, **settings}
    assert [o.column for o in found.owners] == owners and found.rows == 60


def test_labels_owners_and_lengths_are_counted(tmp_path: Path) -> None:
    columns = {"text": ["four", "eleven char"], "label": ["a", "b", "b"], "site": [*SITES, {}]}
    make_files(tmp_path, {"rows.csv": {"columns": columns, "n": 60, "delimiter": ";"}})
    found = describe(tmp_path / "rows.csv")
    assert found.labels == {"b": 40, "a": 20} and list(found.labels) == ["b", "a"]
    assert (found.label_count, found.label_kind, found.unlabelled) == (2, "classes", 0)
    (site,) = found.owners
    assert (site.owners, site.smallest, site.median, site.largest) == (3, 12, 12, 24)
    assert (site.missing, site.by_name) == (12, True)
    assert found.characters == (7, 11) and found.files[0]["delimiter"] == ";"
    assert found.test_rows is None


def test_a_folder_of_one_file_per_site_has_its_files_as_clients(tmp_path: Path) -> None:
    rows = {"columns": {"text": NOTE, "label": ["a", "b"]}, "n": 20}
    make_files(tmp_path, {"north.csv": rows, "south.csv": rows, "test.csv": rows})
    found = describe(tmp_path)
    assert [o.column for o in found.owners] == ["file"] and found.test_rows == 20


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    make_files(tmp_path, {"rows.jsonl": {"columns": {"a": 1, "b": 2.5}}})
    with pytest.raises(UserError, match="no column of texts; columns here: a, b"):
        describe(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"text": NOTE, "label": ["a", "b"], "fold": ["train", "Dev", "test"]},
            "column 'fold' parts the rows",
        ),
        ({"text": NOTE, "fold": ["train", "test"]}, "no column looks like labels"),
        ({"text": NOTE, "label": "L{i}"}, "has a value of its own in most rows"),
        ({"How far is it from here?": NOTE, "b": ["a", "b"]}, "looks like a row ('b' is a label"),
        ({"text": NOTE, "label": ["a", "b"], "ham": ["ham", "spam"]}, ""),
        ({"text": NOTE, "ham": ["ham", "spam"]}, ""),
    ],
)
def test_what_a_guess_leaves_out_is_said(
    columns: dict[str, Any], said: str, tmp_path: Path
) -> None:
    make_files(tmp_path, {"rows.csv": {"columns": columns, "n": 60}})
    found = describe(tmp_path / "rows.csv")
    assert any(said in note for note in found.notes) if said else not found.notes
    assert "fold" not in (found.label_column, *(o.column for o in found.owners))


def test_columns_that_were_not_taken_are_named(tmp_path: Path) -> None:
    columns = {"body": NOTE, "subject": "about {i}", "label": ["a", "b"], "topic": [1, 2, 3]}
    columns |= {"site": SITES, "id": "T-{i}", "created": "2024-01-{i}", "fold": ["train", "test"]}
    make_files(tmp_path, {"rows.csv": {"columns": columns, "n": 60}})
    found = describe(tmp_path / "rows.csv")
    assert (found.other_labels, found.other_texts) == (("topic",), ("subject",))


@pytest.mark.parametrize("tags", [["a;b", "a", "b", ""], [["a", "b"], ["a"], ["b"], []]])
def test_several_labels_are_counted_one_by_one(tags: list[Any], tmp_path: Path) -> None:
    columns = {"text": NOTE, "tags": tags}
    make_files(tmp_path, {"rows.jsonl": {"columns": columns, "n": 60}})
    found = describe(tmp_path / "rows.jsonl")
    assert found.task == "multilabel" and found.labels == {"a": 30, "b": 30}
    assert (found.label_count, found.unlabelled) == (2, 0)


def test_labels_in_a_column_of_any_name(tmp_path: Path) -> None:
    """A rare label in a row of two makes no ids of them, 60 labels of twenty rows each no texts;
    prose with semicolons is no list, nor are sentences that come again."""
    uses = [f"use {k % 7}; kind {k % 11}" if k % 3 else f"use {k % 7}" for k in range(300)]
    uses[5] = "use 1; of its own"
    faults = [f"fault {k % 60}" for k in range(1200)]
    prose = [f"well, {k}; no, {k + 1}" for k in range(300)]
    again = [f"it went as it should {k % 8}, nothing more was said {k % 9}" for k in range(300)]
    guessed = []
    for values in (uses, faults, prose, again):
        table = {"columns": {"about": NOTE, "any": values}, "n": len(values)}
        make_files(tmp_path, {"rows.jsonl": table})
        found = describe(tmp_path / "rows.jsonl")
        guessed.append((found.task, found.label_column, found.label_count))
    joined, many, *neither = guessed
    assert joined == ("multilabel", "any", 7 + 11 + 1)
    assert many == ("classification", "any", 60)
    assert neither == 2 * [("causal_lm", None, 0)]


def test_names_with_a_comma_are_no_joined_labels() -> None:
    assert kind_of({"Miller, Ann": 5, "Smith, Ann": 5, "Jones, Eve": 5}) == "classes"
    assert kind_of({"heat, noise": 5, "heat": 5, "noise": 5}) == "several"


def test_numbers_of_a_table_of_text_are_no_texts_and_what_is_inside_is_said(tmp_path: Path) -> None:
    make_files(tmp_path, {"n.csv": {"columns": {"a": "{i}", "b": "{i}.5"}, "n": 60}})
    with pytest.raises(UserError, match="no column of texts"):
        describe(tmp_path / "n.csv")
    make_files(tmp_path, {"o.jsonl": {"columns": {"id": 1, "data": {"text": "x y"}}}})
    with pytest.raises(UserError, match="inside data is not read: make its fields columns"):
        describe(tmp_path / "o.jsonl")
