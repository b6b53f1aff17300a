"""The strategies: one file each, one line here."""

from forefed.core.errors import UserError, nearest
from forefed.core.plugins import Entries
from forefed.strategies.baffle import BAFFLE
from forefed.strategies.best_of_three import BEST_OF_THREE
from forefed.strategies.dadao import DADAO
from forefed.strategies.decomfl import DECOMFL
from forefed.strategies.dfedsam import DFEDSAM
from forefed.strategies.fedadagrad import FEDADAGRAD
from forefed.strategies.fedadam import FEDADAM
from forefed.strategies.fedavg import FEDAVG
from forefed.strategies.fedavg_checkpointed import FEDAVG_CHECKPOINTED
from forefed.strategies.fedavg_split import FEDAVG_SPLIT
from forefed.strategies.fedbuff import FEDBUFF
from forefed.strategies.feddyn import FEDDYN
from forefed.strategies.fedex import FEDEX
from forefed.strategies.fedfgd import FEDFGD
from forefed.strategies.fedkrso import FEDKRSO
from forefed.strategies.fedkseed import FEDKSEED
from forefed.strategies.fedmezo import FEDMEZO
from forefed.strategies.fedprox import FEDPROX
from forefed.strategies.fedsa_lora import FEDSA_LORA
from forefed.strategies.fedsb import FEDSB
from forefed.strategies.fedsgd import FEDSGD
from forefed.strategies.fedspeed import FEDSPEED
from forefed.strategies.fedsvd import FEDSVD
from forefed.strategies.fedyogi import FEDYOGI
from forefed.strategies.fedyogi_split import FEDYOGI_SPLIT
from forefed.strategies.feedsign import FEEDSIGN
from forefed.strategies.ffa_lora import FFA_LORA
from forefed.strategies.flexlora import FLEXLORA
from forefed.strategies.flora import FLORA
from forefed.strategies.flow import FLOW
from forefed.strategies.fwdllm import FWDLLM
from forefed.strategies.fzoos import FZOOS
from forefed.strategies.hetlora import HETLORA
from forefed.strategies.hiso import HISO
from forefed.strategies.hyperfl import HYPERFL
from forefed.strategies.monna import MONNA
from forefed.strategies.rolora import ROLORA
from forefed.strategies.spry import SPRY
from forefed.strategies.strategy import Strategy
from forefed.strategies.zorba import ZORBA

_ALL = (
    FEDAVG,
    FEDAVG_CHECKPOINTED,
    FEDPROX,
    FEDSGD,
    FEDADAM,
    FEDYOGI,
    FEDADAGRAD,
    FEDAVG_SPLIT,
    FEDYOGI_SPLIT,
    SPRY,
    FEDFGD,
    FEDMEZO,
    BAFFLE,
    FWDLLM,
    DECOMFL,
    HISO,
    FEDKSEED,
    FEEDSIGN,
    DFEDSAM,
    MONNA,
    FFA_LORA,
    ROLORA,
    FEDSA_LORA,
    FEDEX,
    FLORA,
    FLEXLORA,
    HETLORA,
    FEDSVD,
    FEDSB,
    FEDKRSO,
    ZORBA,
    FEDDYN,
    FEDSPEED,
    FEDBUFF,
    FZOOS,
    DADAO,
    FLOW,
    HYPERFL,
    BEST_OF_THREE,
)


def _name(entry: Strategy) -> str:
    if not isinstance(entry, Strategy):
        raise UserError(f"{entry!r} is no forefed.strategies.Strategy")
    return entry.name


STRATEGIES: Entries[Strategy] = Entries("strategy", _ALL, _name)


def strategy(name: str) -> Strategy:
    """The strategy of this name.

    Raises:
        UserError: no such strategy; names the nearest.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy '{name}' is unknown: {nearest(name, STRATEGIES)}")
    return STRATEGIES[name]


__all__ = ["STRATEGIES", "Strategy", "strategy"]
