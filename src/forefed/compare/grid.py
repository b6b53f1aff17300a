"""The cells of a study: one run each, with its whole configuration, checked before any starts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from forefed.compare.study import Study, Table, nested
from forefed.config.compat import check
from forefed.config.config import Config, configure, merge
from forefed.core.errors import UserError
from forefed.core.names import LONGEST
from forefed.report.facts import flat
from forefed.run import record
from forefed.run.checkpoint import config_digest

RUNS, TUNING = "runs", "tuning"
"""Folders below the study's: of the cells, and of the runs that chose settings."""
SPLIT_SEED = 0
"""Draws the held-out rows of every cell, so that no seed tests on rows that another one tuned on.
"""

Point = tuple[tuple[str, Any], ...]
"""Settings by dotted name."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    dataset: str
    method: str
    condition: Point
    seed: int
    tuned: Point
    config: Config

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def folder(self) -> Path:
        return self.config.folder

    @property
    def tuning(self) -> bool:
        return self.folder.parent.name == TUNING

    @property
    def finished(self) -> bool:
        return record.summary(self.folder) is not None


def cells_of(study: Study, tuned: Mapping[tuple[str, str], Point]) -> list[Cell]:
    """Every cell of the grid, one seed after the other, so that early cells compare already.

    Args:
        tuned: the chosen settings by (data set, method); missing: none.

    Raises:
        UserError: settings that cannot work, by cell.
    """
    cells = [
        make_cell(study, dataset, method, condition, seed, tuned.get((dataset, method), ()))
        for seed in study.seeds
        for dataset in study.datasets or ("",)
        for condition in conditions_of(study)
        for method in study.methods
    ]
    return unique(cells)


def conditions_of(study: Study) -> list[Point]:
    """Every combination of the values under ``over``; one empty one without any."""
    return points(study.over)


def points(grid: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of values, the last name varying fastest."""
    return [tuple(zip(grid, values, strict=True)) for values in product(*grid.values())]


def make_cell(
    study: Study,
    dataset: str,
    method: str,
    condition: Point,
    seed: int,
    tuned: Point,
    more: Table | None = None,
    folder: str = RUNS,
) -> Cell:
    """One cell; ``more``: settings on top of all others.

    Raises:
        UserError: settings that cannot work.
    """
    raw = merge({"data": {"split_seed": SPLIT_SEED}}, study.base)
    for table in (study.datasets.get(dataset, {}), study.settings(method)):
        raw = merge(raw, table)
    for key, value in (*condition, *tuned):
        raw = merge(raw, nested(key, value))
    own = {"seed": seed, "out": str(study.folder / folder)}
    own["name"] = cell_name(dataset, method, condition, tuned, seed)
    try:
        config = configure(base=merge(merge(raw, more or {}), own))
        check(config)
    except UserError as error:
        raise UserError(f"{own['name']}: {error}") from None
    return Cell(dataset, method, condition, seed, tuned, config)


def cell_name(dataset: str, method: str, condition: Point, tuned: Point, seed: int) -> str:
    """Readable, and different for different cells: ``spry-sst2-alpha=0.1-lr=0.01-seed0``; one that
    would be too long for a name ends in a digest of it."""
    settings = [f"{key}={_plain(value)}" for key, value in (*condition, *tuned)]
    parts = [method, dataset, *settings, f"seed{seed}"]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(part for part in parts if part))
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: LONGEST - 13]}-{digest}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def unique(cells: list[Cell]) -> list[Cell]:
    """The same cells.

    Raises:
        UserError: two cells of one name, as from two values that read alike.
    """
    names: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in names:
            raise UserError(f"two cells would be named '{cell.name}'; are two values the same?")
        names[cell.name] = cell
    return cells


def refuse_changed(cells: Sequence[Cell]) -> None:
    """Cells that were run before must have been run with these settings.

    Raises:
        UserError: some were not; names the settings that differ.
    """
    for cell in cells:
        if not (cell.folder / "config.json").exists():
            continue
        stored = configure(base=record.read_config(cell.folder))
        if config_digest(stored) == config_digest(cell.config):
            continue
        before, now = (flat(c.model_dump(mode="json")) for c in (stored, cell.config))
        differing = [k for k in {**before, **now} if before.get(k) != now.get(k)]
        changes = ", ".join(
            f"{k} ({before.get(k)} before, {now.get(k)} now)"
            for k in differing
            if k not in ("name", "out", "checkpoint_every", "workers")
        )
        raise UserError(
            f"{cell.folder}: was run with other settings: {changes}; remove the folder, or give "
            "the study another name"
        )
