"""One model for all, each client answers with the classes that it has rows of (OLL, "only local
labels"): Fani et al., "Accelerating heterogeneous federated learning with closed-form classifiers"
(Fed3R, ICML 2024, arXiv 2406.01116), whose closed-form head every client uses for its own classes.

A client keeps which classes its rows have, and nothing else; absent ones have their bias lowered
until they are no answer. Nothing more is trained or sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from forefed.core.types import Params, Unit
from forefed.sharing.sharing import Sharing, Split, names_of

LABELS = "labels"
NEVER = 1e4
"""Taken from the logits of absent classes."""


def biases(names: Iterable[str]) -> list[str]:
    return [n for n in names if n.endswith("bias")]


class LocalLabels(Sharing):
    """All is shared; each client answers with the classes of its own rows only."""

    kind: Literal["local_labels"] = "local_labels"
    source: ClassVar[str] = "Fed3R, arXiv 2406.01116"

    @property
    def personal(self) -> bool:
        return True

    @property
    def keeps_trained(self) -> bool:
        return False

    def split(self, units: Sequence[Unit], round: int) -> Split:
        return Split(names_of(units))

    def differs(self, units: Sequence[Unit]) -> bool:
        return len(biases(n for u in units if u.is_head for n in u.params)) == 1

    def kept(self, labels: Tensor) -> Params:
        return {LABELS: torch.unique(labels)}

    def own(self, params: Params, kept: Params, head: frozenset[str]) -> Params:
        if LABELS not in kept:
            return {}
        (bias,) = biases(head)
        lowered = params[bias] - NEVER
        here = kept[LABELS].to(lowered.device)
        lowered[here] = params[bias][here]
        return {bias: lowered}

    def told(self) -> str:
        return ""

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.data.task.head != "classification":
            yield (
                "sharing.kind = 'local_labels': only a classifier has classes to leave out; set "
                "sharing.kind = 'everything'"
            )
