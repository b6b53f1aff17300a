"""What several attacks compute over benign updates [N, D]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny
Direction = Literal["unit", "sign", "std"]


def mean_and_std(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """By coordinate, over the known updates (the standard deviation of all, not an estimate)."""
    return x_ND.mean(dim=0), x_ND.std(dim=0, correction=0)


def against(direction: Direction, x_ND: Tensor) -> Tensor:
    """p of the optimised attacks: -mu / |mu|, -sign mu or -sigma."""
    mean_D, std_D = mean_and_std(x_ND)
    if direction == "std":
        return -std_D
    return -mean_D.sign() if direction == "sign" else -mean_D / mean_D.norm().clamp(min=TINY)


def farthest(x_ND: Tensor, p_D: Tensor, fits: Callable[[Tensor], bool]) -> Tensor:
    """mu + gamma p with the largest gamma (to 1e-6 of it) that fits; mu, if p is 0."""
    mean_D = x_ND.mean(dim=0)
    if not float(p_D.norm()):
        return mean_D
    radius = float((x_ND - mean_D).norm(dim=1).max() / p_D.norm())
    low, high = 0.0, radius or 1.0
    while fits(mean_D + high * p_D) and high < 1e30:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if fits(mean_D + middle * p_D):
            low = middle
        else:
            high = middle
        if high < 1e-12 * (radius or 1.0):
            break
    return mean_D + low * p_D


def repeated(m_D: Tensor, count: int) -> Tensor:
    """The same vector from all hostile clients."""
    return m_D.expand(count, -1)
