"""A configuration is written, run, compared and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forefed.cli.app import ConfigFile, Sets, configured, out
from forefed.cli.looking import print_baselines
from forefed.core.commands import AcceptChanges
from forefed.core.places import new_place
from forefed.core.terminal import printable, styled

commands = typer.Typer()


@commands.command()
def init(
    data: Annotated[Path, typer.Argument(help="File or folder with your rows.")],
    test: Annotated[
        Path | None, typer.Option(help="File or folder with labelled rows to test on.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="New configuration file.")] = Path(
        "mine.toml"
    ),
) -> None:
    """Look at a file and write a first configuration for it, with a reason beside every line.

    forefed init notes.csv
    """
    from forefed.config.init import Machine, write_first

    out.print(printable(write_first(data, test, output, Machine.here())), soft_wrap=True)


@commands.command("run")
def run_command(
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, bit for bit.")
    ] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Run a federation on this machine and keep its record in runs/NAME.

    Given rows (a .csv, .jsonl or .parquet file, or a folder), it looks at them as 'forefed init'
    does, writes the configuration file, and runs that:

    forefed run notes.csv

    Without a file the defaults run: MiniLM on the standard library's docstrings.
    A strategy's defaults can be changed setting by setting:

    forefed run --set strategy=fedavg --set adapter.r=4 --set rounds=50 --set name=try1
    """
    from forefed.run import run
    from forefed.run.progress import Progress

    chosen = configured(config, sets, here=resume)
    with Progress(out, chosen) as progress:
        result = run(chosen, resume=resume, callbacks=[progress], accept_changes=accept_changes)
    progress.closing(result)
    raise typer.Exit(result.status)


@commands.command()
def demo(
    sets: Sets = None,
) -> None:
    """Fine-tune MiniLM on Python's own docstrings, 40 clients, offline, a few minutes."""
    from forefed.report import read_run, write_report
    from forefed.run import configure, run
    from forefed.run.demo import DEMO, next_steps
    from forefed.run.progress import Progress

    chosen = configure(sets=sets or (), base=DEMO)
    with Progress(out, chosen) as progress:
        result = run(chosen, resume=(chosen.folder / "config.json").exists(), watcher=progress)
    progress.closing(result)
    write_report([read_run(result.folder)], result.folder / "report.html")
    if chosen.data.task.head == "classification":  # what ``baselines`` knows
        out.print("What costs less, on the same test rows:")
        print_baselines(chosen)
        write_report([read_run(result.folder)], result.folder / "report.html")
    out.print(next_steps(result))
    raise typer.Exit(result.status)


@commands.command()
def compare(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="One study (.toml with methods), or one configuration per method."),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B",
            help="Compare under each of these values; strategy.name=spry,fedavg names methods.",
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Choose the best for each method, on validation."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds per cell (default: 3).")] = None,
    sets: Sets = None,
    name: Annotated[
        str | None, typer.Option(help="Folder below compare/ (default: study).")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Cells at a time (default: one per GPU, or per core).")
    ] = None,
) -> None:
    """Compare methods over seeds and conditions: one table with intervals, one HTML report.

    Every cell of the grid (method x condition x seed) is a run in a process of its own; with one
    seed all methods get the same clients, cohorts and batches. The same command again goes on where
    it stopped, and leaves finished cells as they are.

    forefed compare examples/spry.toml examples/fedavg.toml --seeds 3 --over partition.alpha=0.1,1

    forefed compare examples/study.toml
    """
    from forefed.compare.show import compare_from_options

    compare_from_options(out, files or [], over, tune, seeds, sets, name, jobs)


@commands.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are overlaid.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (default: in the run).")
    ] = None,
) -> None:
    """Write one self-contained HTML file with curves, partition, settings and results."""
    from forefed.report import read_run, write_report
    from forefed.report.content import terminal
    from forefed.report.headline import headline
    from forefed.report.page import terminal_tables, warnings
    from forefed.report.read import run_labels

    if output is not None:
        new_place(output, "--output")
    read = [read_run(folder) for folder in runs]
    target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    write_report(read, target)
    for table in terminal_tables(read):
        out.print(terminal(table))
    out.print(styled("\n", (printable(headline(read)), "bold")))
    for text in warnings(read, run_labels(read)):
        out.print(styled((printable(text), "yellow")))
    out.print(f"report: {target}", soft_wrap=True)
