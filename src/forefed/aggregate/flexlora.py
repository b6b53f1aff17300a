"""FlexLoRA: Bai et al., "Federated fine-tuning of large language models under heterogeneous tasks
and client resources" (NeurIPS 2024, arXiv 2402.11505): the mean of the products is split again by
its SVD, U S V^T, so that a client of rank q has the best approximation of rank q in the first q
rows and columns.

Departures: S^(1/2) on either factor (published code: none on A, which misses the product). Where S
is 0, A is drawn anew and B is 0, as with zeros in both nothing could be learned there.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from forefed.aggregate.factored import Factored, Held, New
from forefed.aggregate.flora import drawn_a
from forefed.core.lora import core_svd
from forefed.core.types import ServerContext

NONE = 1e-12
"""Singular values below this part of the largest are rounding."""


class FlexLora(Factored):
    """The mean product, split again by its SVD: exact up to what is beyond the rank."""

    kind: Literal["flexlora"] = "flexlora"
    source: ClassVar[str] = "FlexLoRA, arXiv 2402.11505"
    any_rank: ClassVar[bool] = True

    def product(self, held: Held, ctx: ServerContext) -> New:
        old_a, old_b = held.old
        a_RI, b_OR = held.stacked()
        u, s, vt = core_svd(b_OR, a_RI)
        energy = float(s.square().sum())
        live = min(len(old_a), int((s > NONE * s[0]).sum()))
        roots = s[:live].sqrt()
        a, b = drawn_a(old_a, held.at, ctx).double(), torch.zeros_like(old_b).double()
        a[:live], b[:, :live] = roots[:, None] * vt[:live], u[:, :live] * roots
        kept = float(s[:live].square().sum()) / energy if energy else 1.0
        return New((a, b), metrics={"kept_energy": kept})
