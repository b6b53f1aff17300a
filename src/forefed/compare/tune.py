"""Choosing learning rates and the like: a small grid per method and data set, on validation rows.

The grid is run under ``data.test_on = "validation"``: part of the training rows is held out, and no
test row is read. The same number of runs is not enough to be fair, so the budget of every method
is part of the result, and a winner on the edge of its grid is marked: a wider grid might do better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from forefed.compare.grid import TUNING, Cell, Point, make_cell, points, unique
from forefed.compare.study import Study
from forefed.core.errors import UserError
from forefed.core.types import Json
from forefed.models.objectives import OBJECTIVES
from forefed.report.read import read_run

T = TypeVar("T")
Place = tuple[str, str]
"""Data set and method."""


@dataclass(frozen=True)
class Chosen:
    """What was tried for one method on one data set, and what won."""

    dataset: str
    method: str
    tried: tuple[tuple[Point, float | None], ...]
    """Every point of the grid with its mean final ``by`` on validation rows (None: no number)."""
    best: Point
    edges: tuple[str, ...]
    """Settings whose winning value is the smallest or the largest that was tried."""
    rounds: int
    seeds: int
    by: Literal["quality", "loss"] = "quality"

    def to_json(self) -> Json:
        return {
            "dataset": self.dataset,
            "method": self.method,
            "tried": [{"settings": dict(p), self.by: value} for p, value in self.tried],
            "best": dict(self.best),
            "edges": list(self.edges),
            "rounds": self.rounds,
            "runs": len(self.tried) * self.seeds,
            "seeds": self.seeds,
        }


def tuning_cells(study: Study) -> list[Cell]:
    """The runs that choose settings: every point of every method's grid, on every data set.

    Conditions under ``over`` are not tuned for: what they are compared by is how a method that was
    tuned once stands them.

    Raises:
        UserError: settings that cannot work.
    """
    cells = []
    datasets = [study.tuning.on] if study.tuning.on else study.datasets or ("",)
    for method in study.methods:
        grid = study.tune(method)
        for dataset in datasets:
            for point in points(grid) if grid else ():
                plain = make_cell(study, dataset, method, (), study.seeds[0], point)
                rounds = study.tuning.rounds or math.ceil(plain.config.rounds / 3)
                more = {
                    "rounds": rounds,
                    "data": {"test_on": "validation"},
                    "evaluate": {"every": rounds, "clients": 0},
                }
                for seed in study.seeds[: study.tuning.seeds]:
                    cells.append(make_cell(study, dataset, method, (), seed, point, more, TUNING))
    return unique(cells)


def choose(
    study: Study, cells: Sequence[Cell], failed: Mapping[str, str]
) -> tuple[dict[tuple[str, str], Chosen], dict[tuple[str, str], str]]:
    """The best point of every method and data set, from finished tuning runs.

    A run that failed or diverged counts as the worst.

    Returns:
        Choices by (data set, method), and why there is none where all runs failed.
    """
    groups: dict[tuple[str, str], dict[Point, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, cell.method), {}).setdefault(cell.tuned, []).append(cell)
    choices, missing = {}, {}
    for (dataset, method), by_point in groups.items():
        by = study.tuning.by
        scores = {point: _score(members, failed, by) for point, members in by_point.items()}
        known = {point: score for point, score in scores.items() if score is not None}
        if not known:
            reasons = [failed.get(c.name, "diverged") for m in by_point.values() for c in m]
            missing[dataset, method] = f"no tuning run had a result ({reasons[0]})"
            continue
        any_cell = next(iter(by_point.values()))[0]
        decides = OBJECTIVES[any_cell.config.data.task.head].measures.decides
        sign = -1 if by == "loss" else decides.sign
        best = max(known, key=lambda point: sign * known[point])
        choices[dataset, method] = Chosen(
            dataset,
            method,
            tuple(scores.items()),
            best,
            _edges(best, study.tune(method)),
            any_cell.config.rounds,
            len(by_point[best]),
            by,
        )
    return choices, missing


def for_all(study: Study, found: Mapping[Place, T]) -> dict[Place, T]:
    """What was found by data set and method, for the data sets that were not tuned on, too."""
    if study.tuning.on is None:
        return dict(found)
    return {(name, method): x for (_, method), x in found.items() for name in study.datasets}


def _score(cells: Sequence[Cell], failed: Mapping[str, str], by: str) -> float | None:
    """Mean final quality or loss on the validation rows; None if any run has no number."""
    values = []
    for cell in cells:
        if cell.name in failed or not cell.finished:
            return None
        run = read_run(cell.folder)
        if run.config["data"]["test_on"] != "validation":
            raise UserError(f"{cell.folder}: a tuning run that was tested on test rows; remove it")
        value = run.quality(run.final) if by == "quality" else (run.final or {}).get("loss")
        if value is None or not math.isfinite(value):
            return None
        values.append(value)
    return sum(values) / len(values)


def _edges(best: Point, grid: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    edges = []
    for key, value in best:
        numbers = [v for v in grid[key] if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(grid[key]) > 1 and value in (min(numbers), max(numbers)):
            edges.append(key)
    return tuple(edges)
