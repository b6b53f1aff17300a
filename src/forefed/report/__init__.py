"""Reports of runs, made from their record files alone."""

from forefed.report.html import write_report
from forefed.report.read import Run, read_run
from forefed.report.tables import partition_table, results_table

__all__ = ["Run", "partition_table", "read_run", "results_table", "write_report"]
