"""One model for all clients (FedAvg, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from forefed.core.types import Unit
from forefed.sharing.sharing import Sharing, Split, names_of


class Everything(Sharing):
    """All trained parameters are shared: one model for all clients."""

    kind: Literal["everything"] = "everything"

    def split(self, units: Sequence[Unit], round: int) -> Split:
        return Split(names_of(units))

    def differs(self, units: Sequence[Unit]) -> bool:
        return True
