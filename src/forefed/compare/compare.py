"""A comparison from start to finish: tune, run every cell, write the results.

    OUT/NAME/tuning/    runs that chose settings (on validation rows)
    OUT/NAME/runs/      one run per cell
    OUT/NAME/logs/      what the cells printed
    OUT/NAME/study.json what was compared: methods, cells, tuning (all that the results are made of)
    OUT/NAME/results.{json,md,html}

The same call again goes on where it stopped: finished cells are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forefed.compare.grid import Cell, cells_of, refuse_changed
from forefed.compare.schedule import LOGS, Watch, run_cells
from forefed.compare.study import Study
from forefed.compare.tune import Chosen, choose, for_all, tuning_cells
from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.core.types import Json
from forefed.report.comparison import STUDY, write_results
from forefed.run.record import locked


@dataclass(frozen=True)
class Outcome:
    """Where the results are, and which cells have none, with the reason."""

    folder: Path
    failed: dict[str, str]


def compare(study: Study, jobs: int | None = None, watch: Watch | None = None) -> Outcome:
    """Run what is missing of a study, and write its results.

    Args:
        jobs: cells at a time; None: one per GPU where cells ask for one, else one per core.

    Raises:
        UserError: settings that cannot work, cells that were run with other settings, or no cell
            with a result; before anything runs where that can be known.
    """
    watch = watch or Watch()
    tuning = tuning_cells(study)
    refuse_changed([*tuning, *cells_of(study, {})])
    with locked(study.folder):
        failed: dict[str, str] = {}
        choices: dict[tuple[str, str], Chosen] = {}
        missing: dict[tuple[str, str], str] = {}
        if tuning:
            failed |= run_cells(tuning, jobs, study.folder / LOGS / "tuning", watch)
            choices, missing = choose(study, tuning, failed)
        best = {place: choice.best for place, choice in choices.items()}
        planned, missing = cells_of(study, for_all(study, best)), for_all(study, missing)
        cells = [cell for cell in planned if (cell.dataset, cell.method) not in missing]
        refuse_changed(cells)
        failed |= {
            cell.name: missing[cell.dataset, cell.method]
            for cell in planned
            if (cell.dataset, cell.method) in missing
        }
        try:
            failed |= run_cells(cells, jobs, study.folder / LOGS, watch)
        finally:  # what is finished is worth reading after a Ctrl-C too
            write_json(study.folder / STUDY, record_of(study, planned, choices, failed))
            if any(cell.finished for cell in cells):
                write_results(study.folder)
        if not any(cell.finished for cell in cells):
            first = next(iter(failed.items()), ("", "no cell"))
            raise UserError(f"{study.folder}: no cell has a result; {first[0]}: {first[1]}")
    return Outcome(study.folder, failed)


def record_of(
    study: Study,
    cells: Sequence[Cell],
    choices: dict[tuple[str, str], Chosen],
    failed: dict[str, str],
) -> Json:
    """What ``study.json`` says: everything the results need beside the runs' own records."""
    return {
        "name": study.name,
        "methods": list(study.methods),
        "datasets": list(study.datasets),
        "reference": study.reference or next(iter(study.methods)),
        "seeds": list(study.seeds),
        "over": {key: list(values) for key, values in study.over.items()},
        "target": study.target,
        "budgets": study.budgets.model_dump(mode="json"),
        "tuning": [choice.to_json() for choice in choices.values()],
        "cells": [
            {
                "name": cell.name,
                "method": cell.method,
                "dataset": cell.dataset,
                "condition": dict(cell.condition),
                "tuned": dict(cell.tuned),
                "seed": cell.seed,
                "folder": str(cell.folder.relative_to(study.folder)),
                "error": failed.get(cell.name),
            }
            for cell in cells
        ],
    }
