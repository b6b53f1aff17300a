"""Rules that make one update out of many: one file each, one line here."""

from forefed.aggregate.aggregator import Aggregator, PerUnit
from forefed.aggregate.mean import Mean
from forefed.aggregate.median import Median
from forefed.aggregate.norm_bound import NormBound
from forefed.aggregate.trimmed_mean import TrimmedMean
from forefed.core.settings import Registry

AGGREGATORS: Registry[Aggregator] = Registry("aggregator", [Mean, Median, TrimmedMean, NormBound])
__all__ = ["AGGREGATORS", "Aggregator", "Mean", "Median", "NormBound", "PerUnit", "TrimmedMean"]
