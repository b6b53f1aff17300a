"""Reports of runs, made from their record files alone."""

from pathlib import Path

from forefed.core.facade import callable_package
from forefed.report.html import write_report
from forefed.report.read import Run, read_run
from forefed.report.tables import partition_table, results_table

__all__ = ["Run", "partition_table", "read_run", "report", "results_table", "write_report"]


def report(*folders: Path | str, output: Path | str) -> None:
    """Write one HTML page about the runs in these folders."""
    write_report([read_run(Path(folder)) for folder in folders], Path(output))


callable_package(__name__, report)
