"""Which rows to label next: what a sparse bandit gains, and a list that names no row twice."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from commands import Command, mistake
from federation import World, text_rows, write_lines
from forefed.core.keys import Key
from forefed.use.bandit import (
    exploring,
    largest,
    next_rows,
    pull,
    sparse_fit,
    spread_out,
    surprises,
)


def problem(seed: int, rows: int = 1500, width: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Features, and what every row is worth: five of the features matter."""
    x = Key(seed).fold("x").normal((rows, width)).double().numpy()
    theta = np.zeros(width)
    theta[[3, 50, 77, 120, 199]] = (1.0, -1.0, 0.7, 0.7, -0.5)
    return x, x @ theta


@pytest.mark.parametrize("seed", [0, 1])
def test_half_the_regret_of_chance_and_no_row_twice(seed: int) -> None:
    x, worth = problem(seed)
    noise = 0.1 * Key(seed).fold("noise").normal((len(x),)).double().numpy()
    asked: list[int] = []

    def reward(i: int) -> float:
        asked.append(i)
        return float(worth[i] + noise[i])

    rows = pull(x, reward, 150, Key(seed).fold("pull"))
    assert rows == asked and len(set(rows)) == 150
    best = float(np.sort(worth)[-150:].mean())
    assert best - float(worth[rows].mean()) < 0.5 * (best - float(worth.mean()))


def test_without_a_penalty_it_is_least_squares() -> None:
    x, worth = problem(1, 300, 20 + 180)
    x = x[:, :20]
    expected = np.linalg.lstsq(x, worth, rcond=None)[0]
    assert sparse_fit(x, worth, 0.0, 3000) == pytest.approx(expected, abs=1e-6)
    assert largest(np.array([1.0, -3.0, 2.0]), 2).tolist() == [0.0, -3.0, 2.0]
    assert exploring(200) == 100 and exploring(10_000) == 1474


def test_exploration_covers_directions_before_it_repeats_one() -> None:
    x = np.array([[2.0, 0, 0], [1.9, 0, 0], [0, 1.0, 0], [0, 0, 0.5], [1.8, 0, 0]])
    assert spread_out(x, 2, range(5)) == [0, 2]
    assert spread_out(x, 9, [1, 3]) == [1, 3]


def test_surprises_are_those_of_leaving_a_row_out() -> None:
    """By hand: the answer of all other rows, for each row."""
    x = Key(4).normal((12, 3)).double().numpy()
    labels = ["a", "b", "a", "a", "b", "b", "a", "b", "a", "b", "b", "a"]
    found = surprises(x, labels)
    whole = np.hstack([x, np.ones((12, 1))])
    target = np.array([[label == c for c in "ab"] for label in labels], dtype=float)
    for i in (0, 7):
        others = np.arange(12) != i
        a, y = whole[others], target[others]
        said = whole[i] @ np.linalg.solve(a.T @ a + np.eye(4), a.T @ y)
        assert found[i] == pytest.approx(((said - target[i]) ** 2).sum())


def test_next_rows_are_free_ones() -> None:
    x, worth = problem(2)
    labelled = list(range(400))
    rows = next_rows(x, labelled, worth[labelled], range(500, 1500), 30)
    assert len(rows) == len({*rows}) == 30 and min(rows) >= 500
    assert float(worth[rows].mean()) > 2.0  # of 1.6 as a standard deviation: the best ones
    assert len(next_rows(x, [], np.zeros(0), range(5), 9)) == 5


def test_the_list_grows_and_names_no_row_twice(
    world: World, tmp_path: Path, forefed_command: Command
) -> None:
    rows = [{**r, "label": r["label"] if i < 20 else ""} for i, r in enumerate(text_rows())]
    data = write_lines(tmp_path / "mine.jsonl", rows)
    words = ["annotate", data, "--budget", 9, "--model", world.bert]
    said = forefed_command(*words)
    assert said.status == 0 and "9 of 43" in said.out
    listed = tmp_path / "mine.to-label.csv"
    forefed_command(*words)
    with listed.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    numbers = [int(line["row"]) for line in lines]
    assert len({*numbers}) == len(numbers) == 18 and min(numbers) > 20
    assert all(line["text"] == rows[n - 1]["text"] for n, line in zip(numbers, lines, strict=True))
    mistake(forefed_command("annotate", tmp_path / "none.csv", "--budget", 3), "none.csv")
    mistake(forefed_command(*words[:2], "--budget", 0), "budget")
