"""Reports of runs, made from their record files alone."""

from pathlib import Path

from forefed.core.facade import callable_package
from forefed.report.page import write_report
from forefed.report.read import Run, read_run

__all__ = ["Run", "read_run", "report", "write_report"]


def report(*folders: Path | str, output: Path | str) -> None:
    """Write one HTML page about the runs in these folders."""
    write_report([read_run(Path(folder)) for folder in folders], Path(output))


callable_package(__name__, report)
