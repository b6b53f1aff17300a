"""FlexLoRA: Bai et al., "Federated fine-tuning of large language models under heterogeneous tasks
and client resources" (NeurIPS 2024, arXiv 2402.11505): the mean of the products is split again by
its SVD, U S V^T, so that a client of rank q has the best approximation of rank q in the first q
rows and columns.

Departures: S^(1/2) on either factor (published code: none on A, which misses the product). Where S
is 0, A is drawn anew and B is 0, as with zeros in both nothing could be learned there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.aggregator import Metrics
from forefed.aggregate.factored import Factored, Pair
from forefed.aggregate.flora import drawn_a
from forefed.core.lora import Factors, core_svd, stacked
from forefed.core.types import ServerContext

NONE = 1e-12
"""Singular values below this part of the largest are rounding."""


class FlexLora(Factored):
    """The mean product, split again by its SVD: exact up to what is beyond the rank."""

    kind: Literal["flexlora"] = "flexlora"
    source: ClassVar[str] = "FlexLoRA, arXiv 2402.11505"
    any_rank: ClassVar[bool] = True

    def product(
        self,
        own: Sequence[Pair],
        shares: Sequence[float],
        old: Pair,
        at: Factors,
        ctx: ServerContext,
    ) -> tuple[Pair, Tensor | None, Metrics]:
        u, s, vt = core_svd(*stacked(own, shares))
        energy = float(s.square().sum())
        live = min(len(old[0]), int((s > NONE * s[0]).sum()))
        roots = s[:live].sqrt()
        a, b = drawn_a(old[0], at, ctx).double(), torch.zeros_like(old[1]).double()
        a[:live], b[:, :live] = roots[:, None] * vt[:live], u[:, :live] * roots
        kept = float(s[:live].square().sum()) / energy if energy else 1.0
        return (a, b), None, {"kept_energy": kept}
