"""FedAvg, then fine-tuning: all is shared for some rounds; afterwards every client trains a model
of its own, from the common one. The plainest personal model (Yu et al., "Salvaging federated
learning by local adaptation", arXiv 2002.04758), and the baseline of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.core.types import Unit
from forefed.sharing.sharing import Sharing, Split, names_of


class FineTune(Sharing):
    """All is shared for some rounds; then every client goes on alone from there."""

    kind: Literal["fine_tune"] = "fine_tune"
    after: Annotated[int, Field(ge=1)] = 10
    """The last round in which anything is shared."""

    source: ClassVar[str] = "Yu et al., arXiv 2002.04758"
    from_common: ClassVar[bool] = True

    @property
    def personal(self) -> bool:
        return True

    def split(self, units: Sequence[Unit], round: int) -> Split:
        names = names_of(units)
        if round <= self.after:
            return Split(names)
        return Split(frozenset(), private=names)

    def differs(self, units: Sequence[Unit]) -> bool:
        return True

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.rounds and config.rounds <= self.after:
            yield (
                f"sharing.after = {self.after}: of {config.rounds} rounds none is left in which "
                "clients train for themselves; set rounds higher, or sharing.after lower"
            )
