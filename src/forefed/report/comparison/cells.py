"""Reading a comparison: ``study.json`` and the record of every cell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forefed.core.errors import UserError
from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report.read import Run, read_run

STUDY = "study.json"


@dataclass(frozen=True)
class Place:
    """Where methods are compared: one data set under one condition."""

    dataset: str
    condition: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """As in "sst2, partition.alpha = 0.1"; empty where there is one place only."""
        settings = [f"{key} = {value}" for key, value in self.condition]
        return ", ".join([*([self.dataset] if self.dataset else []), *settings])


@dataclass(frozen=True)
class Cell:
    """One run of the comparison; ``run`` is None where it has no result, ``error`` says why."""

    name: str
    method: str
    place: Place
    seed: int
    run: Run | None
    error: str | None


@dataclass(frozen=True)
class Comparison:
    """All cells, and what ``study.json`` says of them."""

    folder: Path
    study: Json
    cells: tuple[Cell, ...]

    @property
    def methods(self) -> list[str]:
        return list(self.study["methods"])

    @property
    def reference(self) -> str:
        return str(self.study["reference"])

    @property
    def over(self) -> dict[str, list[Any]]:
        return dict(self.study["over"])

    @property
    def places(self) -> list[Place]:
        """In the order of the grid."""
        return list(dict.fromkeys(c.place for c in self.cells))

    def asked(self, place: Place, method: str) -> list[Cell]:
        """The cells of a method at a place."""
        return [c for c in self.cells if (c.place, c.method) == (place, method)]

    def runs(self, place: Place, method: str) -> dict[int, Run]:
        """The finished runs of a method at a place, by seed."""
        return {c.seed: c.run for c in self.asked(place, method) if c.run}

    @property
    def metric(self) -> Metric:
        """What all runs are measured by."""
        return next(c.run.metric for c in self.cells if c.run and c.run.metric)

    def better(self, a: float, b: float) -> bool:
        return self.metric.sign * (a - b) > 0


def read_comparison(folder: Path) -> Comparison:
    """The comparison in ``folder``.

    Raises:
        UserError: there is none, it is damaged, or its runs are measured in different ways.
    """
    path = folder / STUDY
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); 'forefed compare' writes it") from None
    cells = []
    for line in study["cells"]:
        run = None
        if (folder / line["folder"] / "summary.json").exists():
            run = read_run(folder / line["folder"])
        condition = tuple((key, _hashable(v)) for key, v in line["condition"].items())
        cells.append(
            Cell(
                line["name"],
                line["method"],
                Place(line["dataset"], condition),
                line["seed"],
                run,
                line["error"],
            )
        )
    measured = list(dict.fromkeys(c.run.metric.title for c in cells if c.run and c.run.metric))
    if len(measured) != 1:
        said = f"measured by {' and by '.join(measured)}" if measured else "not measured yet"
        raise UserError(
            f"{folder}: the runs are {said}; compare different tasks in studies of their own"
        )
    return Comparison(folder, study, tuple(cells))


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
