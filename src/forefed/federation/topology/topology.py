"""Who talks to whom in a round. The loop's parts (transport, codec, keys) are the star's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from forefed.core.settings import Choice
from forefed.core.types import Lost, Reply
from forefed.federation.state import RunState

if TYPE_CHECKING:
    from forefed.federation.star import RoundReport, Star

Hook = Callable[[Reply | Lost], None]


class Topology(Choice):
    """Base: a round as a function of the state."""

    @abstractmethod
    def round(
        self, star: Star, state: RunState, on_outcome: Hook | None
    ) -> tuple[RunState, RoundReport]:
        """One round. ``RunState.params`` of the result is the model that is tested and exported;
        what nodes hold for themselves stands in ``RunState.states``."""


class Central(Topology):
    """One server, many clients (FedAvg and its relatives)."""

    kind: Literal["star"] = "star"
    source: ClassVar[str] = "McMahan et al., arXiv 1602.05629"

    def round(
        self, star: Star, state: RunState, on_outcome: Hook | None
    ) -> tuple[RunState, RoundReport]:
        return star.central_round(state, on_outcome)
