"""A1: the gradient, from its slopes along known directions.

Source: least squares; scalar_channel: K slopes are K linear measurements of a gradient of d
elements, so what is recovered has cosine sqrt(K / d) with it, and 1 from K = d on. Noise of a known
variance is answered by ridge, so that a noisy channel is attacked by who knows that it is noisy.

Axes: K measurements, D elements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def recovered(directions_KD: Tensor, slopes_K: Tensor, noise: float = 0.0) -> Tensor:
    """The gradient [D] that fits the slopes: the shortest of those that fit best.

    Args:
        directions_KD: the directions.
        slopes_K: <gradient, direction> + noise; what is not finite is left out.
        noise: variance of the noise of one slope, relative to the variance of one element of the
            gradient (0: none, the pseudo-inverse).
    """
    finite = torch.isfinite(slopes_K)
    v_KD, s_K = directions_KD[finite].double(), slopes_K[finite].double()
    if not len(s_K):
        return torch.zeros(directions_KD.shape[1], dtype=torch.float64)
    if noise <= 0:
        return torch.linalg.lstsq(v_KD, s_K[:, None], driver="gelsd").solution[:, 0]
    gram = v_KD @ v_KD.T + noise * torch.eye(len(s_K), dtype=torch.float64)
    return v_KD.T @ torch.linalg.solve(gram, s_K)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two flat tensors; 0 where one of them is 0."""
    a, b = a.double(), b.double()
    product = math.sqrt(float(torch.dot(a, a)) * float(torch.dot(b, b)))
    return float(torch.dot(a, b)) / product if product else 0.0
