"""What of three models a client answers with, chosen by its own held-out rows
(``local/best_of_three.py``): the common one, the common one after the client's own steps of its
last round, or one that it has trained alone from the run's first values (Mansour et al., "Three
approaches for personalization with applications to federated learning", arXiv 2002.10619, compare
the same kinds of models). All is shared, as in FedAvg; choice, own model and steps stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from forefed.core.states import below
from forefed.core.types import Params, Unit
from forefed.sharing.sharing import Sharing, Split, names_of

CHOICE = "choice"
"""Which of the three below a client has chosen: its number, a tensor."""
COMMON, TUNED, ALONE = "common", "tuned", "alone"
MODELS = (COMMON, TUNED, ALONE)
JUDGED = "judged"
"""The one that is trained alone, as it is without the rows that it is judged by."""


class BestOfThree(Sharing):
    """All is shared; each client answers with the best of the common, its tuned and its own."""

    kind: Literal["best_of_three"] = "best_of_three"
    source: ClassVar[str] = "Mansour et al., arXiv 2002.10619"

    @property
    def personal(self) -> bool:
        return True

    def split(self, units: Sequence[Unit], round: int) -> Split:
        return Split(names_of(units))

    def differs(self, units: Sequence[Unit]) -> bool:
        return True

    def own(self, params: Params, kept: Params, head: frozenset[str]) -> Params:
        return below(kept, MODELS[int(kept[CHOICE])]) if CHOICE in kept else {}

    def told(self) -> str:
        return ""

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.client.kind != "best_of_three":
            yield (
                f"sharing.kind = 'best_of_three': client.kind = '{config.client.kind}' chooses "
                "nothing; set strategy = 'best_of_three', which has both"
            )
