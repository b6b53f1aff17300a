"""RoLoRA: Chen et al., "Robust federated finetuning of LLMs via alternating optimization of LoRA"
(NeurIPS 2025, arXiv 2502.01755): one round trains and averages B with A at rest, the next one A
with B at rest. Every average is exact, half of the factors travels, and both are learned.

Departure: B is first (published: either), as A has no gradient while B is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.core.lora import is_a, is_b
from forefed.core.types import Unit
from forefed.sharing.factors import OfFactors
from forefed.sharing.sharing import Split, names_of


class RoLora(OfFactors):
    """Odd rounds train B, even ones A; the head is trained in all."""

    kind: Literal["rolora"] = "rolora"
    source: ClassVar[str] = "RoLoRA, arXiv 2502.01755"

    def split(self, units: Sequence[Unit], round: int) -> Split:
        names = names_of(units)
        rests = is_a if round % 2 else is_b
        resting = frozenset(n for n in names if rests(n))
        return Split(names - resting, frozen=resting)
