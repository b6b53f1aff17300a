"""A Gaussian process over the parameters, with the Matern-5/2 kernel, and its random features.

    k(x, z) = (1 + a + a^2 / 3) e^-a,   a = sqrt(5) |x - z| / l
    m(x) = sum_q alpha_q k(x, x_q),     alpha = (K + ridge I)^-1 (y - mean y)
    grad k(x, z) = -5 / (3 l^2) (1 + a) e^-a (x - z)

Sources: Rasmussen and Williams, "Gaussian processes for machine learning" (2006), equations 2.25,
2.26 and 4.17; Rahimi and Recht (NeurIPS 2007) for the features: phi_m(x) = sqrt(2 / M) cos(w_m x +
b_m), whose inner product is k in the mean when w has the kernel's spectral density. For Matern-5/2
that is Student's t with 5 degrees of freedom: w = z sqrt(5 / u) / l, z normal, u chi-square of 5.

The mean is linear in y, so nothing is scaled (published code: y to [0, 1] by the smallest and
largest so far, by which a surrogate's unit changes from round to round). All in float64: points lie
so close that most of it goes in a difference.

Legend: Q, P points, D parameters, M features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from forefed.core.keys import Key

DEGREES = 5


def kernel(x_PD: Tensor, z_QD: Tensor, length: float) -> Tensor:
    """k of every pair: [P, Q] float64."""
    a_PQ = _scaled(x_PD, z_QD, length)
    return (1 + a_PQ + a_PQ**2 / 3) * torch.exp(-a_PQ)


def coefficients(x_QD: Tensor, y_Q: Tensor, length: float, ridge: float) -> Tensor:
    """alpha [Q] of the posterior mean given values at these points."""
    return _solved(kernel(x_QD, x_QD, length), ridge, y_Q.double() - y_Q.double().mean())


def gradient(at_D: Tensor, x_QD: Tensor, alpha_Q: Tensor, length: float) -> Tensor:
    """The gradient of the posterior mean at a point: [D] float64."""
    a_Q = _scaled(at_D[None], x_QD, length)[0]
    share_Q = alpha_Q * (1 + a_Q) * torch.exp(-a_Q)
    away_QD = at_D.double() - x_QD.double()
    return (-DEGREES / (3 * length**2)) * (share_Q @ away_QD)


def doubt(at_PD: Tensor, x_QD: Tensor, length: float, ridge: float) -> Tensor:
    """The posterior variance at points, given values at others, in units of the prior's: [P]."""
    beside_PQ = kernel(at_PD, x_QD, length)
    solved_QP = _solved(kernel(x_QD, x_QD, length), ridge, beside_PQ.T)
    return 1 - (beside_PQ * solved_QP.T).sum(1)


@dataclass(frozen=True)
class Features:
    """M random features of the kernel: a function is M numbers, and those of a mean of functions
    are the mean of theirs."""

    waves_MD: Tensor
    shifts_M: Tensor

    def of(self, x_PD: Tensor) -> Tensor:
        """phi of points: [P, M] float64."""
        return self._scale * torch.cos(x_PD.double() @ self.waves_MD.T + self.shifts_M)

    def fit(self, x_QD: Tensor, y_Q: Tensor, ridge: float) -> Tensor:
        """Ridge weights nu [M] of values at points, but for their mean."""
        phi_QM = self.of(x_QD)
        y_Q = y_Q.double()
        return phi_QM.T @ _solved(phi_QM @ phi_QM.T, ridge, y_Q - y_Q.mean())

    def gradient(self, at_D: Tensor, nu_M: Tensor) -> Tensor:
        """Of nu phi(x) at a point: [D] float64."""
        sines_M = torch.sin(self.waves_MD @ at_D.double() + self.shifts_M)
        return -self._scale * (nu_M.double() * sines_M) @ self.waves_MD

    @property
    def _scale(self) -> float:
        return math.sqrt(2 / len(self.shifts_M))


@lru_cache(maxsize=4)
def features(key: Key, count: int, size: int, length: float) -> Features:
    """The features that this public key draws: the same ones for all who know it."""
    z_MD = key.fold("waves").normal((count, size)).double()
    u_M = (key.fold("chi-square").normal((count, DEGREES)).double() ** 2).sum(1)
    shifts_M = 2 * math.pi * key.fold("shifts").uniform((count,)).double()
    return Features(z_MD * (DEGREES / u_M).sqrt()[:, None] / length, shifts_M)


def _scaled(x_PD: Tensor, z_QD: Tensor, length: float) -> Tensor:
    """sqrt(5) |x - z| / l of every pair. (By differences: products lose what is close.)"""
    far_PQ = torch.cdist(x_PD.double(), z_QD.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return far_PQ * (math.sqrt(DEGREES) / length)


def _solved(gram_QQ: Tensor, ridge: float, right: Tensor) -> Tensor:
    whole_QQ = gram_QQ + ridge * torch.eye(len(gram_QQ), dtype=torch.float64)
    return torch.linalg.solve(whole_QQ, right)
