"""Reading run folders: whole, in progress, torn, damaged, and no run at all."""

import json

import pytest

from forefed.core.errors import UserError
from forefed.core.metrics import ACCURACY
from forefed.report import read_run
from forefed.report.read import finite, run_labels
from forefed.report.words import duration, listing, short, size
from report_records import read_lines, record, write_lines


def test_a_finished_run_gives_its_totals_and_its_best(tmp_path):
    folder = record(tmp_path / "one", rounds=4, top=0.8, up=100, down=1000, forwards=50.0)
    tests = read_lines(folder / "evaluations.jsonl")
    tests[1]["accuracy"] = 0.9  # round 2 was better than the end
    write_lines(folder / "evaluations.jsonl", tests)
    run = read_run(folder)
    assert run.finished and run.done == 4 and run.metric == ACCURACY and run.torn == 0
    assert run.total("bytes_up") == 4 * 8 * 100 and run.orders == 32
    assert run.spent("bytes") == {r: r * 8 * 1100 for r in range(5)}
    assert run.spent("forwards")[3] == 150
    assert run.best["round"] == 2 and run.final["round"] == 4
    assert (run.untrained, run.majority) == (0.25, 0.27)
    assert run.memory("rss") == 700_000_004


def test_a_run_in_progress_has_its_baseline_and_an_evaluation_ahead_of_its_round(tmp_path):
    folder = record(tmp_path / "one", rounds=6, planned=40)
    write_lines(folder / "rounds.jsonl", read_lines(folder / "rounds.jsonl")[:5])
    run = read_run(folder)
    assert not run.finished and (run.done, run.planned) == (5, 40) and run.majority == 0.27
    assert run.final["round"] == 6 and 6 not in run.spent("bytes")


def test_a_run_that_has_only_started_is_readable(tmp_path):
    folder = record(tmp_path / "one", rounds=0, planned=9)
    (folder / "rounds.jsonl").unlink()
    (folder / "evaluations.jsonl").unlink()
    run = read_run(folder)
    assert (run.done, run.metric, run.final, run.best) == (0, None, None, None)


@pytest.mark.parametrize("kept", [1, 30, -2])
def test_a_torn_last_line_is_left_out_and_counted(tmp_path, kept):
    folder = record(tmp_path / "one", rounds=3)
    text = (folder / "rounds.jsonl").read_text()
    head, last = text.splitlines(keepends=True)[:2], text.splitlines(keepends=True)[2]
    (folder / "rounds.jsonl").write_text("".join(head) + last[:kept])
    run = read_run(folder)
    assert (run.done, run.torn) == (2, 1)


def test_a_file_torn_inside_a_character_is_read(tmp_path):
    folder = record(tmp_path / "one", rounds=2)
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write('{"round": 3, "note": "é'.encode()[:-1])
    assert read_run(folder).torn == 1


@pytest.mark.parametrize("damage", ["{oops", "[1]", '{"loss": 1}'])
def test_damage_before_the_end_names_file_and_line(tmp_path, damage):
    folder = record(tmp_path / "one", rounds=3)
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    lines[1] = damage
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"rounds\.jsonl, line 2: damaged"):
        read_run(folder)


def test_an_evaluation_of_nothing_and_a_summary_without_a_word_are_damage(tmp_path):
    folder = record(tmp_path / "one", rounds=3)
    path = folder / "evaluations.jsonl"
    whole = path.read_text()
    path.write_text('{"round": 0}\n' + whole)
    with pytest.raises(UserError, match=r"evaluations\.jsonl, line 1: damaged"):
        read_run(folder)
    path.write_text(whole)
    (folder / "summary.json").write_text('{"status": 5}')
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        read_run(folder)


def test_null_and_nan_losses_count_as_no_number(tmp_path):
    folder = record(tmp_path / "one", rounds=3)
    lines = read_lines(folder / "rounds.jsonl")
    lines[0]["loss"], lines[1]["loss"] = None, float("nan")
    write_lines(folder / "rounds.jsonl", lines)
    assert [finite(line["loss"]) is None for line in read_run(folder).rounds] == [True, True, False]


def test_a_folder_that_is_no_run_says_what_is_missing_and_where_runs_are(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json, environment\.json, partition\.json"):
        read_run(tmp_path / "empty")
    inside = record(tmp_path / "runs" / "demo", rounds=1)
    with pytest.raises(UserError, match=f"runs found inside: {inside}"):
        read_run(tmp_path / "runs")
    (inside / "partition.json").unlink()
    with pytest.raises(UserError, match=r"\(partition\.json missing\)"):
        read_run(inside)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_head_is_named(tmp_path, text):
    folder = record(tmp_path / "one", rounds=1)
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        read_run(folder)


def test_losses_are_summed_by_reason(tmp_path):
    folder = record(tmp_path / "one", rounds=3)
    lines = read_lines(folder / "rounds.jsonl")
    for line, lost in zip(lines, ({"offline": 2}, {"error": 1, "offline": 1}, {}), strict=True):
        line["lost"] = lost
    write_lines(folder / "rounds.jsonl", lines)
    assert read_run(folder).lost == {"error": 1, "offline": 3}


def test_equal_names_are_told_apart(tmp_path):
    runs = [
        read_run(record(tmp_path / place, rounds=1, name=name))
        for place, name in (("a", "same"), ("b", "same"), ("c", "other"))
    ]
    first = str(tmp_path / "a")
    assert run_labels([*runs, runs[0]]) == [first, str(tmp_path / "b"), "other", f"{first} (2)"]


def test_numbers_read_as_people_write_them():
    assert [size(n) for n in (None, 0, 999, 1234, 999_600, 2.5e9)] == [
        "–", "0 B", "999 B", "1.23 kB", "1.00 MB", "2.50 GB",
    ]  # fmt: skip
    assert [short(n) for n in (950, 18_240, 1e6)] == ["950", "18.2 k", "1 M"]
    assert [duration(s) for s in (0.4213, 99.96, 3599.7, 7500)] == [
        "0.421 s", "1 min 40 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
    assert [listing(x) for x in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a", "a and b", "a, b and c",
    ]  # fmt: skip


def test_the_record_is_only_read(tmp_path):
    folder = record(tmp_path / "one", rounds=2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    read_run(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert json.loads(before["config.json"])["name"] == "one"
