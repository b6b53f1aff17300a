"""Who takes part in a round: one file each, one line here."""

from forefed.core.settings import Registry
from forefed.select.availability import Availability
from forefed.select.poisson import Poisson
from forefed.select.select import Selector
from forefed.select.uniform import Uniform

SELECTORS: Registry[Selector] = Registry("select", [Uniform, Poisson, Availability])
__all__ = ["SELECTORS", "Availability", "Poisson", "Selector", "Uniform"]
