"""A3: what went into a layer, from the row space of its gradient.

Source: DAGER (Petrov et al., arXiv 2405.15586). The gradient of a matrix by which inputs x are
multiplied is a sum of products (dL/dh) x^T, so its rows are combinations of the inputs: where it
has as many rows as there are inputs, every input lies in their span, and hardly anything else. For
LoRA's A the rows are r per matrix (and 0 as long as B is 0); matrices that read the same inputs are
stacked.

The first block's inputs are one token each, so a vocabulary of candidates can be tried.

Axes: R rows of a gradient, D its columns, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEGLIGIBLE = 1e-4
"""Singular values below this share of the largest are rounding."""


def row_space(gradients: Sequence[Tensor], negligible: float = NEGLIGIBLE) -> Tensor:
    """An orthonormal basis [rank, D] of the rows of gradients [R, D] that read the same inputs.

    Each is scaled to length 1 first, as a value's gradient is longer than a query's.
    """
    scaled = [g.double() / norm for g in gradients if (norm := float(g.double().norm())) > 0]
    if not scaled:
        return torch.zeros(0, gradients[0].shape[1], dtype=torch.float64)
    _, values, rows = torch.linalg.svd(torch.cat(scaled), full_matrices=False)
    return rows[values > negligible * values[0]]


def inside(basis_RD: Tensor, candidates_ND: Tensor) -> Tensor:
    """|P x| / |x| [N] of every candidate: 1 for what lies in the row space; about sqrt(R / D) for
    what has nothing to do with it; 0 for a zero candidate."""
    length_N = candidates_ND.norm(dim=1)
    along_NR = candidates_ND @ basis_RD.T.to(candidates_ND)
    return along_NR.norm(dim=1) / length_N.clamp_min(torch.finfo(length_N.dtype).tiny)


def ranked_right(scores_N: Tensor, right: set[int]) -> float:
    """R-precision: the share of the ``len(right)`` best candidates that are right."""
    best = torch.argsort(scores_N, descending=True, stable=True)[: len(right)]
    return len(right & set(best.tolist())) / len(right) if right else 0.0
