"""The strategies: one file each, one line here."""

from forefed.core.errors import UserError, nearest
from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.fedfgd import FEDFGD
from forefed.strategies.spry import SPRY
from forefed.strategies.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {s.name: s for s in (FEDAVG, SPRY, FEDFGD)}


def strategy(name: str) -> Strategy:
    """The strategy of this name.

    Raises:
        UserError: no such strategy; names the nearest.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy '{name}' is unknown: {nearest(name, STRATEGIES)}")
    return STRATEGIES[name]


__all__ = ["STRATEGIES", "Strategy", "strategy"]
