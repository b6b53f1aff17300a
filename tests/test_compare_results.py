"""The numbers of a comparison, by hand, from made-up records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from forefed.core.errors import UserError
from forefed.core.metrics import ACCURACY, BITS_PER_BYTE
from forefed.report.comparison import STUDY, Comparison, read_comparison, write_results
from forefed.report.comparison.loses import losses
from forefed.report.comparison.parts import overview
from forefed.report.comparison.pictures import doubted
from forefed.report.comparison.results import (
    Interval,
    difference_text,
    interval,
    paired,
    quality_text,
    results_of,
)
from forefed.report.comparison.views import (
    cost_to,
    robustness,
    rounded_up,
    target_of,
    under_budgets,
)
from report_records import write_lines


def test_an_interval_by_hand() -> None:
    """0.80, 0.82, 0.87: mean 0.83, s = sqrt(0.0026 / 2), t(2) = 4.3027."""
    found = interval([0.80, 0.82, 0.87])
    assert found is not None and found.n == 3
    assert found.mean == pytest.approx(0.83)
    assert found.half == pytest.approx(4.302653 * (0.0013**0.5) / 3**0.5)
    assert interval([]) is None
    assert interval([0.5]) == Interval(0.5, None, 1)


def test_a_paired_difference_by_hand() -> None:
    """Seed by seed +0.02, +0.04, +0.03: what the seeds share is gone, and so is seed 9."""
    ours, theirs = {0: 0.52, 1: 0.94, 2: 0.73, 9: 0.1}, {0: 0.50, 1: 0.90, 2: 0.70}
    found = paired(ours, theirs)
    assert found is not None and found.n == 3
    assert found.mean == pytest.approx(0.03)
    assert found.half == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert difference_text(ACCURACY, found) == "+3.0 ± 2.5*"
    assert difference_text(ACCURACY, Interval(0.03, 0.031, 3)) == "+3.0 ± 3.1"
    assert quality_text(BITS_PER_BYTE, found) == "0.030 ± 0.025"


# A study: rounds 1 to 4, tested after each; a round costs up + down bytes and some forwards.

METHODS = {
    # final quality by seed, earlier ones, bytes up and down, forwards, memory
    "dense": ([0.80, 0.82, 0.87], [0.30, 0.60, 0.79], 700, 300, 10.0, 5_000),
    "small": ([0.70, 0.72, 0.77], [0.50, 0.69, 0.71], 40, 60, 50.0, 1_234),
}


def made_up(folder: Path, lm: bool = False, alphas: tuple[float, ...] = (0.1,)) -> Comparison:
    """Alpha 10 adds 0.1 to every final quality."""
    cells = []
    for method, (finals, early, up, down, forwards, memory) in METHODS.items():
        for alpha in alphas:
            for seed, final in enumerate(finals):
                name = f"{method}-{alpha}-{seed}"
                (folder / name).mkdir(parents=True)
                for file in ("config", "environment", "partition", "summary"):
                    (folder / name / f"{file}.json").write_text(json.dumps({"name": name}))
                line = {
                    "bytes_up": up,
                    "bytes_down": down,
                    "forwards": forwards,
                    "memory": {"peak_above_weights": memory + seed},
                    "seconds": {"clients": 6.0, "total": 7.0},
                    "cohort": [1, 2],
                    "replies": 2,
                }
                rounds = [{"round": r, **line} for r in range(1, 5)]
                write_lines(folder / name / "rounds.jsonl", rounds)
                end = final + (0.1 if alpha == 10 else 0.0)
                key = "bits_per_byte" if lm else "accuracy"
                tests = [
                    {"round": r, "split": "test", key: 1 / q if lm else q, "n": 100}
                    for r, q in enumerate([0.25, *early, end])
                ]
                write_lines(folder / name / "evaluations.jsonl", tests)
                cells.append(
                    {
                        "name": name,
                        "method": method,
                        "dataset": "",
                        "condition": {"partition.alpha": alpha},
                        "tuned": {},
                        "seed": seed,
                        "folder": name,
                        "error": None,
                    }
                )
    study = {
        "name": "made-up",
        "methods": list(METHODS),
        "reference": "dense",
        "seeds": [0, 1, 2],
        "over": {"partition.alpha": list(alphas)},
        "target": None,
        "budgets": {"memory": [], "bytes": [], "forwards": []},
        "tuning": [],
        "cells": cells,
    }
    (folder / STUDY).write_text(json.dumps(study))
    return read_comparison(folder)


def test_the_overview_by_hand(tmp_path: Path) -> None:
    """Two places: 0.83 and 0.93; four rounds of 10 forwards, 700 bytes up and 300 down."""
    comparison = made_up(tmp_path, alphas=(0.1, 10))
    quality, forwards, traffic = overview(comparison, results_of(comparison)).tables
    assert quality.caption == "final accuracy" and quality.heads == ("", "dense", "small")
    assert [row[0] for row in quality.rows] == ["partition.alpha = 0.1", "partition.alpha = 10"]
    assert [row[1].split(" ")[0] for row in quality.rows] == ["83.0", "93.0"]
    assert forwards.rows[0][1:] == ("40", "200")
    assert traffic.rows[1][1:] == ("4.00 kB", "400 B")


def test_one_place_needs_no_overview(tmp_path: Path) -> None:
    comparison = made_up(tmp_path)
    assert overview(comparison, results_of(comparison)).empty


def test_the_main_table_by_hand(tmp_path: Path) -> None:
    dense, small = results_of(made_up(tmp_path))
    assert dense.quality == interval([0.80, 0.82, 0.87]) and dense.difference is None
    assert small.difference is not None
    assert small.difference.mean == pytest.approx(-0.1) and small.difference.half == pytest.approx(
        0, abs=1e-9
    )
    assert small.costs == {
        "up_each": 20,  # 40 bytes from 2 clients
        "down_each": 30,
        "bytes_up": 160,
        "bytes_down": 240,
        "forwards": 200,
        "memory": 1_236,  # the largest of the seeds
        "seconds_each": 3,
    }


def test_the_last_round_counts_not_the_best(tmp_path: Path) -> None:
    comparison = made_up(tmp_path)
    path = tmp_path / "dense-0.1-0" / "evaluations.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines[2]["accuracy"] = 0.99
    write_lines(path, lines)
    again = read_comparison(tmp_path)
    assert results_of(again)[0].quality == results_of(comparison)[0].quality


def test_quality_under_budgets_by_hand(tmp_path: Path) -> None:
    comparison = made_up(tmp_path)
    place = comparison.places[0]
    study = comparison.study | {
        "budgets": {"memory": [2_000, 9_000], "bytes": [99, 400, 2_500], "forwards": [30]}
    }
    comparison = Comparison(tmp_path, study, comparison.cells)
    found = under_budgets(comparison, place, results_of(comparison))
    reached = [{m: round(i.mean, 4) for m, i in b.reached.items()} for b in found]
    assert reached == [
        {"small": 0.73},  # memory: 2,000 is too little for dense
        {"dense": 0.83, "small": 0.73},
        {},  # 99 bytes: less than a round
        {"small": 0.73},  # 400 bytes: all four rounds of small, none of dense
        {"dense": 0.6, "small": 0.73},  # 2,500 bytes: two rounds of dense
        {"dense": 0.79},  # 30 forwards: three rounds of dense, none of small
    ]
    assert [b.title for b in found][2] == "bytes both ways ≤ 99 B"


def test_budgets_of_their_own(tmp_path: Path) -> None:
    """Totals are 400 and 4,000 bytes: a quarter of the least, the least, between, the most."""
    comparison = made_up(tmp_path)
    found = under_budgets(comparison, comparison.places[0], results_of(comparison))
    titles = [b.title for b in found if b.title.startswith("bytes")]
    assert titles == [f"bytes both ways ≤ {x}" for x in ("100 B", "400 B", "1.30 kB", "4.00 kB")]
    assert rounded_up(52_123) == pytest.approx(53_000) and rounded_up(400) == 400


def test_cost_to_a_target_by_hand(tmp_path: Path) -> None:
    comparison = made_up(tmp_path)
    place, results = comparison.places[0], results_of(comparison)
    assert target_of(comparison, results, place) == pytest.approx(0.95 * 0.83)
    dense, small = (list(comparison.runs(place, m).values()) for m in METHODS)
    found = cost_to(comparison, dense, [0.65] * 3)
    assert (found.seeds, found.rounds, found.bytes, found.forwards) == (3, 3, 3_000, 30)
    some = cost_to(comparison, small, [0.75] * 3)
    assert (some.seeds, some.of, some.rounds) == (1, 3, 4)
    assert some.texts()[0] == "4 (1 of 3 seeds)"
    assert cost_to(comparison, small, [0.9] * 3).texts() == ("–", "–", "–")


def test_bits_per_byte_are_better_when_fewer(tmp_path: Path) -> None:
    comparison = made_up(tmp_path, lm=True)
    place, results = comparison.places[0], results_of(comparison)
    best = results[0].quality
    assert best is not None
    assert target_of(comparison, results, place) == pytest.approx(best.mean / 0.95)
    dense = list(comparison.runs(place, "dense").values())
    assert cost_to(comparison, dense, [1 / 0.6] * 3).rounds == 2
    assert "bits per byte above dense" in dict(losses(comparison, results))["small"]


def test_robustness_by_hand(tmp_path: Path) -> None:
    comparison = made_up(tmp_path, alphas=(0.1, 10))
    (view,) = robustness(comparison, results_of(comparison))
    assert view.key == "partition.alpha" and view.values == (0.1, 10)
    means = {m: [i and round(i.mean, 4) for i in row] for m, row in view.by_method.items()}
    assert means == {"dense": [0.83, 0.93], "small": [0.73, 0.83]}


def test_every_method_is_told_where_it_loses(tmp_path: Path) -> None:
    comparison = made_up(tmp_path)
    said = dict(losses(comparison, results_of(comparison)))
    where = " (partition.alpha = 0.1)"
    assert said["small"] == (
        f"10.0 ± 0.0 points below dense{where}; 5.0 times the forward-equivalents of dense{where}"
    )
    assert said["dense"] == f"18 times the bytes up per answer of small{where}"


def test_what_methods_confuse_and_how_sure_they_are_is_shown(tmp_path: Path) -> None:
    comparison = made_up(tmp_path)
    assert doubted(comparison).empty  # records without details have no such pictures
    details = {
        "round": 4,
        "confusion": [[7, 1], [2, 5]],
        "calibration": [[5, 0.55, 0.4], [10, 0.9, 0.8]],
    }
    for method in METHODS:
        folder = tmp_path / f"{method}-0.1-0"
        (folder / "details.json").write_text(json.dumps(details))
        (folder / "partition.json").write_text(json.dumps({"labels": ["<b>", "no"]}))
    section = doubted(read_comparison(tmp_path))
    (certainty,) = section.figures
    assert certainty is not None and certainty.table is not None
    assert certainty.table.rows[0] == ("55 %", "40 %", "40 %")
    assert [f.title for f in section.more if f] == [
        f"{method}, partition.alpha = 0.1" for method in METHODS
    ]
    write_results(tmp_path)
    page = (tmp_path / "results.html").read_text()
    assert "Confusion and certainty" in page and "<b>," not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len({*ids})


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    made_up(tmp_path)
    (tmp_path / "small-0.1-2" / "summary.json").unlink()
    write_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "2 (1 not run)" in text and "| small-0.1-2 | not finished |" in text
    study = json.loads((tmp_path / "study.json").read_text())
    for cell in study["cells"]:
        cell["error"] = "out of memory" if cell["name"] == "small-0.1-2" else None
    (tmp_path / "study.json").write_text(json.dumps(study))
    write_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "2 (1 failed)" in text and "| small-0.1-2 | out of memory |" in text


def test_different_measures_are_not_mixed(tmp_path: Path) -> None:
    made_up(tmp_path)
    path = tmp_path / "small-0.1-2" / "evaluations.jsonl"
    write_lines(path, [{"round": 4, "split": "test", "bits_per_byte": 2.0}])
    with pytest.raises(UserError, match="bits per byte"):
        read_comparison(tmp_path)
    with pytest.raises(UserError, match="forefed compare"):
        read_comparison(tmp_path / "nowhere")
