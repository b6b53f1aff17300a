"""What several rules compute over the vectors [N, D] of one unit; all in float64."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny


def coordinate_median(x_ND: Tensor) -> Tensor:
    """Median of every coordinate [D]; of an even number the mean of the two middle values."""
    sorted_ND, n = x_ND.sort(dim=0).values, len(x_ND)
    return (sorted_ND[(n - 1) // 2] + sorted_ND[n // 2]) / 2


def middle(values_N: Tensor) -> Tensor:
    """Median of numbers, a scalar; of an even number the mean of the two middle ones."""
    return coordinate_median(values_N[:, None])[0]


def distances(x_ND: Tensor) -> Tensor:
    """Euclidean distances [N, N], by differences (a product of matrices would lose the digits of
    vectors that lie close to one another and far from 0)."""
    return torch.cdist(x_ND, x_ND, compute_mode="donot_use_mm_for_euclid_dist")


def clipped(x_ND: Tensor, bound: Tensor | float) -> Tensor:
    """The vectors, scaled down to at most this length."""
    norms_N = x_ND.norm(dim=1).clamp(min=TINY)
    return x_ND * (bound / norms_N).clamp(max=1.0)[:, None]


def capped(w_N: Tensor, cap: float = 3.0) -> Tensor:
    """Weights of at most ``cap`` medians: how many examples a client has is its own claim."""
    return w_N.clamp(max=float(cap * middle(w_N)))
