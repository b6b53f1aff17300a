"""Rules that make one update out of many."""

from forefed.aggregate.holders import Rule, aggregate
from forefed.aggregate.mean import Mean
from forefed.core.settings import Registry

RULES: Registry[Rule] = Registry("rule", [Mean])
__all__ = ["RULES", "Mean", "Rule", "aggregate"]
