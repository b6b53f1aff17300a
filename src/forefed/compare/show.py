"""The command: options to a study, progress while it runs, and its main table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import TaskID

from forefed.compare.compare import compare
from forefed.compare.grid import Cell
from forefed.compare.schedule import Watch
from forefed.compare.study import Study, is_study, study_of_configs, study_of_file, with_tune
from forefed.core.errors import Stopped, UserError
from forefed.core.settings import parse
from forefed.core.terminal import bars, printable
from forefed.report.comparison import main_tables
from forefed.report.content import terminal


def compare_from_options(
    console: Console,
    files: Sequence[Path],
    over: Sequence[str] | None,
    tune: Sequence[str] | None,
    seeds: int | None,
    sets: Sequence[str] | None,
    name: str | None,
    jobs: int | None,
) -> None:
    """What ``forefed compare`` does.

    Raises:
        UserError: as ``compare``; or options that a study file decides itself; or failed cells,
            after the results of the others are written.
    """
    study = study_of_options(files, over, tune, seeds, sets, name)
    with Progress(console) as progress:
        outcome = compare(study, jobs, progress)
    for table in main_tables(outcome.folder):
        console.print(terminal(table, turned=len(table.heads) > 2))
    console.print(
        f"results: {outcome.folder / 'results.md'}, {outcome.folder / 'results.html'}",
        soft_wrap=True,
    )
    if outcome.failed:
        cell, error = next(iter(outcome.failed.items()))
        raise UserError(
            f"{len(outcome.failed)} of the runs failed and are left out, for example {cell}: "
            f"{error}; the same command tries them again"
        )


def study_of_options(
    files: Sequence[Path],
    over: Sequence[str] | None,
    tune: Sequence[str] | None,
    seeds: int | None,
    sets: Sequence[str] | None,
    name: str | None,
) -> Study:
    """A study from the command line; raises like ``compare_from_options``."""
    more = {key: value for key, value in (("name", name), ("seeds", seeds)) if value is not None}
    if any(is_study(file) for file in files):
        if len(files) > 1 or over:
            raise UserError(
                f"{files[0]}: a study says itself what is compared; give it alone, and write "
                "--over into its table [over]"
            )
        study = study_of_file(files[0], sets or ())
        study = parse(Study, {**study.model_dump(), **more}, "compare")
    else:
        study = study_of_configs(files, over or (), sets or (), **more)
    return with_tune(study, tune or ())


class Progress(Watch):
    """A ``Watch`` that draws: all cells, and the rounds of those that run."""

    def __init__(self, console: Console):
        self.console = console
        self.bars = bars(console)
        self.running: dict[str, TaskID] = {}
        self.all: TaskID | None = None

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(
                "stopped; finished cells and rounds are kept: the same command goes on"
            ) from None

    def planned(self, cells: Sequence[Cell], finished: int, jobs: int) -> None:
        what = "tuning runs" if cells and cells[0].tuning else "cells"
        self.console.print(f"{len(cells)} {what}, {finished} finished already; {jobs} at a time")
        self.all = self.bars.add_task(what, total=len(cells), completed=finished)

    def rounds(self, cell: Cell, done: int) -> None:
        if cell.name not in self.running:
            self.running[cell.name] = self.bars.add_task(cell.name, total=cell.config.rounds)
        self.bars.update(self.running[cell.name], completed=done)

    def ended(self, cell: Cell, error: str | None) -> None:
        task = self.running.pop(cell.name, None)
        if task is not None:
            self.bars.remove_task(task)
        if self.all is not None:
            self.bars.advance(self.all)
        if error is not None:
            self.console.print(printable(f"failed: {cell.name}: {error}"), style="red")
        elif not self.console.is_terminal:
            self.console.print(f"finished: {cell.name}")
