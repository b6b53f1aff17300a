"""HetLoRA: Cho et al., "Heterogeneous LoRA for federated fine-tuning of on-device foundation
models" (EMNLP 2024, arXiv 2401.06432): factors of other ranks are filled up with zeros and averaged
apart, weighed by the length of their product |B_i A_i|_F. Cheap, and not exact: padding dilutes
what clients of high rank learned.

Departures: a weight counts for at most three times the client's share of the examples (published:
no bound, so one client can take the round over); ranks are not pruned while a client trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from forefed.aggregate.factored import Factored, Held, New
from forefed.core.lora import norm_of_product
from forefed.core.types import ServerContext

MOST = 3.0


class HetLora(Factored):
    """Factors padded with zeros, averaged apart, weighed by the length of their products."""

    kind: Literal["hetlora"] = "hetlora"
    source: ClassVar[str] = "HetLoRA, arXiv 2401.06432"
    any_rank: ClassVar[bool] = True
    restarts: ClassVar[bool] = False

    def product(self, held: Held, ctx: ServerContext) -> New:
        weights = weights_of([norm_of_product(b, a) for a, b in held.own], held.shares)
        new = tuple(torch.zeros_like(x).double() for x in held.old)
        for w, pair in zip(weights, held.own, strict=True):
            for mean, x in zip(new, pair, strict=True):
                mean[: x.shape[0], : x.shape[1]] += w * x
        return New((new[0], new[1]))


def weights_of(norms: Sequence[float], shares: Sequence[float]) -> list[float]:
    """q_i = |B_i A_i| over their sum, at most 3 p_i, made to sum to 1; p_i where all are 0."""
    total = sum(norms)
    if not total:
        return [*shares]
    capped = [min(x / total, MOST * p) for x, p in zip(norms, shares, strict=True)]
    return [x / sum(capped) for x in capped]
