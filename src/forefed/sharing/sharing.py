"""Which parameters travel: shared ones do, private ones never leave a client, frozen ones rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from forefed.core.errors import UserError
from forefed.core.settings import Choice
from forefed.core.types import Params, Unit


@dataclass(frozen=True)
class Split:
    """Names of parameters; each in exactly one part.

    ``shared``: sent both ways. ``private``: trained by each client, kept in its own state and never
    sent. ``frozen``: sent down where a client needs them, trained by nobody in this round.
    """

    shared: frozenset[str]
    private: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()


def names_of(units: Sequence[Unit]) -> frozenset[str]:
    return frozenset(name for unit in units for name in unit.params)


class Sharing(Choice):
    """Base of the ways to divide the parameters."""

    whole_products: ClassVar[bool] = True
    """Does the server hold both factors of every low-rank update, so that it knows products?"""

    from_common: ClassVar[bool] = False
    """Does what a client keeps to itself begin at the common values of that time (else: at the
    run's first)?"""

    @abstractmethod
    def split(self, units: Sequence[Unit], round: int) -> Split:
        """The parts in this round."""

    def differs(self, units: Sequence[Unit]) -> bool:
        """Has this model anything that is shared in another way than all the rest?"""
        split = self.split(units, 1)
        return bool(split.private | split.frozen)

    def check(self, units: Sequence[Unit], params: Params) -> None:
        """Refuse a model, before anything is trained, that cannot be shared like this.

        Raises:
            UserError: it cannot.
        """
        if not self.differs(units):
            raise UserError(
                f"sharing.kind = '{self.kind}': this model has none of the parameters that it is "
                "about; set sharing.kind = 'everything'"
            )

    def form(self, client: int) -> int:
        """Which form of the parameters this client works with (``sent``); 0 where all have one."""
        return 0

    @property
    def by_memory(self) -> bool:
        """Does a client's form follow from what memory it has?"""
        return False

    def granted(self, memory: int) -> str:
        """What a machine of so many bytes is given, where forms go by memory.

        Raises:
            ProtocolError: it is too small for any.
        """
        return ""

    def hearing(self, memory: Mapping[int, int]) -> Sharing:
        """The same, with what clients' machines have; more of them may come to know later."""
        return self

    def form_of(self, client: int, params: Params) -> int:
        """The form that an order has for this client; for whoever follows it, and does not know
        what the server has chosen by."""
        return self.form(client)

    def sent(self, params: Params, form: int) -> Params:
        """The parameters in this form: what such a client receives, trains and sends a change
        of."""
        return params

    @property
    def personal(self) -> bool:
        """Do clients keep parameters of their own, so that each has another model?"""
        return False

    @property
    def keeps_trained(self) -> bool:
        """Are there parameters that each client trains for itself?"""
        return self.personal

    def kept(self, labels: Tensor) -> Params:
        """What else a client keeps, from the classes [B] of its own rows; read by ``own``."""
        return {}

    def own(self, params: Params, kept: Params, head: frozenset[str]) -> Params:
        """A client's own values beside the common ones.

        Args:
            params: the common ones.
            kept: what the client keeps to itself (empty: nothing yet).
            head: the names of the head's parameters.
        """
        return kept

    def told(self) -> str:
        """What whoever uses the exported or predicting model must know of its parameters; empty
        where it is the model of all clients."""
        if not self.personal:
            return ""
        return (
            f"sharing.kind = '{self.kind}': what the clients trained for themselves stayed with "
            "them, so this model has the run's first, untrained values there, and its answers are "
            "none of any client's"
        )

    def reveals(self) -> str:
        """What a message tells by this choice, beyond what every client's change does; empty:
        nothing (``forefed check`` and ``forefed audit`` print it)."""
        return ""

    def conflicts(self, config: Any) -> Iterator[str]:
        if not self.keeps_trained:
            return
        if config.codec.sends_slopes:
            yield (
                f"sharing.kind = '{self.kind}': private parameters never leave a client, and from "
                f"what codec.kind = '{config.codec.kind}' sends the server does all of its steps "
                "again; use codec.kind = 'dense' or 'quantised'"
            )
        if config.start.kind not in ("none", "auto"):
            yield (
                f"sharing.kind = '{self.kind}': start.kind = '{config.start.kind}' solves one head "
                "for all, which clients with heads of their own never see; set start.kind = 'none'"
            )
