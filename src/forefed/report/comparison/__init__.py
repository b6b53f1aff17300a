"""The results of a comparison, made from its ``study.json`` and the records of its runs alone."""

from forefed.report.comparison.cells import STUDY, Comparison, read_comparison
from forefed.report.comparison.write import main_tables, write_results

__all__ = ["STUDY", "Comparison", "main_tables", "read_comparison", "write_results"]
