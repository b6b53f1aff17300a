"""Linear heads from the clients' sums: ridge regression, and discriminants with Gaussian classes.

Source: Fed3R (Fani et al., arXiv 2406.01116) for ridge regression; Gaussian discriminants from the
same sums as GH-OFL (ICLR 2026) has them. Departure: features are standardised by the same sums, and
standardisation is folded into what comes out.

Axes: D features, C targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from forefed.core.errors import UserError
from forefed.start.sums import Sums

NARROW = 1e-3
"""Of a label's variance, what stays within both of its groups at least."""


@dataclass(frozen=True)
class Head:
    """A linear head on unstandardised features: x W^T + b, float64."""

    weight_CD: Tensor
    bias_C: Tensor

    def times(self, scale: float, shift: Tensor | float = 0.0) -> Head:
        return Head(scale * self.weight_CD, scale * self.bias_C + shift)


@dataclass(frozen=True)
class Solver:
    """Heads from sums of standardised features (zero variance: 0)."""

    rows: int
    mean_D: Tensor
    scale_D: Tensor
    covariance_DD: Tensor
    mean_target_C: Tensor
    """In the targets' own units..."""
    along_CD: Tensor
    """... as is their covariance with the features."""
    notes: tuple[str, ...]

    @staticmethod
    def of(total: Sums, unit: float = 1.0) -> Solver:
        """``unit``: of the targets. Raises UserError where all rows have the same features."""
        n = total.rows
        x, xy, xx = total.real()
        mean = x / n
        covariance = xx / n - torch.outer(mean, mean)
        variance = covariance.diagonal()
        if float(variance.max()) <= 0:
            raise UserError(
                "start: all training rows have the same features, so no head can tell them apart; "
                "check data.task.text and data.max_length"
            )
        flat = variance <= 1e-9 * variance.mean()
        scale = torch.where(flat, torch.ones_like(variance), variance.clamp_min(0).sqrt())
        standard = covariance / torch.outer(scale, scale)
        standard[flat], standard[:, flat] = 0.0, 0.0
        mean_target = total.mean_target()
        along = (xy / n - torch.outer(mean_target, mean)) / scale
        along[:, flat] = 0.0
        notes = []
        if n < len(mean):
            notes.append(
                f"{n:,} training rows are few for a head that reads {len(mean):,} features; it is "
                "kept simple (start.regularisation), and more rows would help"
            )
        return Solver(n, mean, scale, standard, unit * mean_target, unit * along, tuple(notes))

    @cached_property
    def _spread(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [D] and eigenvectors [D, D] of the features' covariance."""
        values, vectors = torch.linalg.eigh(self.covariance_DD)
        return values, vectors

    @cached_property
    def _inside(self) -> tuple[Tensor, Tensor]:
        """The same within classes, where targets are one of C."""
        shares = self.mean_target_C.clamp_min(0.5 / self.rows)
        between = (self.along_CD / shares[:, None]).T @ self.along_CD
        values, vectors = torch.linalg.eigh(self.covariance_DD - between)
        return values, vectors

    def ridge(self, share: float) -> Head:
        """Least squares. ``share``: of the mean variance, added to every eigenvalue."""
        return self._unstandardised(
            _solved(self._spread, share, self.along_CD), self.mean_target_C.clone()
        )

    def discriminant(self, share: float, log_prior: bool = True) -> Head:
        """Logits of classes that are Gaussian with one covariance; targets are one of C."""
        means_CD = self.along_CD / self.mean_target_C.clamp_min(0.5 / self.rows)[:, None]
        weight = _solved(self._inside, share, means_CD)
        bias = -(weight * means_CD).sum(1) / 2
        if log_prior:
            bias = bias + self.mean_target_C.clamp_min(0.5 / self.rows).log()
        return self._unstandardised(weight, bias)

    def labels(self, share: float, log_prior: bool = True) -> Head:
        """The log odds of every label by itself, each with and without it Gaussian with one
        covariance.

        That covariance is the features' own less a rank of one (Sherman and Morrison), so all
        labels share one decomposition, and the direction is ridge regression's.
        """
        held = self.mean_target_C.clamp(0.5 / self.rows, 1 - 0.5 / self.rows)
        odds = held / (1 - held)
        apart_CD = self.along_CD / (held * (1 - held))[:, None]  # mean with less mean without
        plain = _solved(self._spread, share, apart_CD)
        between = held * (1 - held) * (plain * apart_CD).sum(1)
        weight = plain / (1 - between).clamp_min(NARROW)[:, None]
        middle_CD = apart_CD * (1 - 2 * held)[:, None] / 2  # of both means; features have mean 0
        bias = -(weight * middle_CD).sum(1)
        if log_prior:
            bias = bias + odds.log()
        return self._unstandardised(weight, bias)

    def _unstandardised(self, weight_CD: Tensor, bias_C: Tensor) -> Head:
        raw = weight_CD / self.scale_D
        return Head(raw, bias_C - raw @ self.mean_D)


def _solved(spread: tuple[Tensor, Tensor], share: float, right_CD: Tensor) -> Tensor:
    """right (V diag(values + share mean(values)) V^T)^-1"""
    values, vectors = spread
    damped = values.clamp_min(0) + share * float(values.clamp_min(0).mean())
    solved: Tensor = (right_CD @ vectors / damped) @ vectors.T
    return solved
