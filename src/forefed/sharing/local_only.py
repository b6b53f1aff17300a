"""Nobody shares anything: every client trains its own model from the run's first values. The
baseline that a personal model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.core.types import Unit
from forefed.sharing.sharing import Sharing, Split, names_of


class LocalOnly(Sharing):
    """Every client keeps a model of its own; nothing is shared."""

    kind: Literal["local_only"] = "local_only"
    source: ClassVar[str] = "baseline"

    @property
    def personal(self) -> bool:
        return True

    def split(self, units: Sequence[Unit], round: int) -> Split:
        return Split(frozenset(), private=names_of(units))
