"""FFA-LoRA: Sun et al., "Improving LoRA in privacy-preserving federated learning" (ICLR 2024, arXiv
2403.12313): A is drawn once and rests, only B is trained and sent. W + s B A is linear in B, so the
mean of the products is the product of the mean, and noise on B enters once.

Departure: A is drawn from the run's key (Kaiming uniform, as PEFT draws), so nobody's can differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.core.lora import is_a
from forefed.core.types import Unit
from forefed.sharing.factors import OfFactors
from forefed.sharing.sharing import Split, names_of


class FfaLora(OfFactors):
    """A rests at its first values; B and the head are trained by all."""

    kind: Literal["ffa_lora"] = "ffa_lora"
    source: ClassVar[str] = "FFA-LoRA, arXiv 2403.12313"

    def split(self, units: Sequence[Unit], round: int) -> Split:
        names = names_of(units)
        resting = frozenset(n for n in names if is_a(n))
        return Split(names - resting, frozen=resting)
