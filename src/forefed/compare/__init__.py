"""Comparisons: a grid of methods, data sets, conditions and seeds, run and reported as one."""

from forefed.compare.compare import Outcome, compare
from forefed.compare.study import Study, study_of_configs, study_of_file
from forefed.core.facade import callable_package

__all__ = ["Outcome", "Study", "compare", "study_of_configs", "study_of_file"]
callable_package(__name__, compare)
