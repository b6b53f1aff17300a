"""Who talks to whom in a round. The loop's parts (transport, codec, keys) are the star's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from forefed.core.keys import Key
from forefed.core.settings import Choice
from forefed.core.types import Lost, Params, Reply
from forefed.federation.report import RoundReport
from forefed.federation.state import RunState
from forefed.wire import Codec

if TYPE_CHECKING:
    from forefed.federation.star import Star

Hook = Callable[[Reply | Lost], None]


class Topology(Choice):
    """Base: a round as a function of the state."""

    central: ClassVar[bool] = True
    """Is there a server, which asks, adds up and steps?"""

    awaits: ClassVar[bool] = True
    """Has a round heard whomever it asked before it ends, so that it may be taken back?"""

    def check(self, population: int, key: Key) -> None:
        """Refuse, before anything runs, what cannot work among so many clients.

        Raises:
            UserError: it cannot.
        """
        return None

    def trained_by(self, codec: Codec) -> Codec:
        """The codec of what local training gives, where the run's is this one."""
        return codec

    def models(self, state: RunState) -> Mapping[int, Params]:
        """The model of every node, where each has its own; nothing where all have one."""
        return {}

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
