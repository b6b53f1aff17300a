"""FedSA-LoRA: Guo et al., "Selective aggregation for low-rank adaptation in federated learning"
(ICLR 2025, arXiv 2410.01463): A is averaged, every client keeps its own B. General directions in
common, each client's own combination of them, and half the upload.

A client's B begins at 0, where A has no gradient: its first step trains B (and the head) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.core.lora import is_b
from forefed.core.types import Unit
from forefed.sharing.factors import OfFactors
from forefed.sharing.sharing import Split, names_of


class FedSaLora(OfFactors):
    """A and the head are trained by all; every client keeps a B of its own."""

    kind: Literal["fedsa_lora"] = "fedsa_lora"
    source: ClassVar[str] = "FedSA-LoRA, arXiv 2410.01463"
    whole_products: ClassVar[bool] = False

    @property
    def personal(self) -> bool:
        return True

    def split(self, units: Sequence[Unit], round: int) -> Split:
        names = names_of(units)
        own = frozenset(n for n in names if is_b(n))
        return Split(names - own, private=own)
