"""Sums over rows of a linear head's inputs: exact whole numbers, so that they can be subtracted.

Features are rounded to multiples of ``STEP`` (a hundredth of their usual size), and sums are kept
in units of STEP and STEP^2 as 64-bit integers. So the total does not depend on the order or the
grouping of its parts, not by a bit; a site that leaves is subtracted without a trace; and a secure
sum modulo 2^64 adds the same numbers.

Axes: B rows, D features, C targets (what the head is fitted to: ``start.targets``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from forefed.core.errors import ProtocolError
from forefed.core.types import Params

STEP = 2.0**-8
LARGEST = 2.0**20
"""Of a feature in units of STEP: beyond it products leave the exact range of float64."""
_PARTS = ("n", "y", "x", "xy", "xx")


@dataclass(frozen=True)
class Sums:
    """int64: how many rows []; of targets [C], of x [D], of x by target [C, D]; upper triangle of
    x x^T. Targets are in whole units of their own (``Targets.unit``)."""

    n: Tensor
    y: Tensor
    x: Tensor
    xy: Tensor
    xx: Tensor

    @property
    def rows(self) -> int:
        return int(self.n)

    def mean_target(self) -> Tensor:
        """Of all rows, [C] float64, in units of the targets: the shares of classes."""
        return self.y.double() / max(self.rows, 1)

    @staticmethod
    def zero(targets: int, width: int) -> Sums:
        sizes = ((), (targets,), (width,), (targets, width), (width * (width + 1) // 2,))
        return Sums(*(torch.zeros(size, dtype=torch.int64) for size in sizes))

    @staticmethod
    def of(x_BD: Tensor, y_BC: Tensor) -> Sums:
        """Sums over these rows.

        Args:
            y_BC: their targets, whole numbers.

        Raises:
            ProtocolError: features that are not finite, or absurdly large.
        """
        units_BD = (x_BD.double() / STEP).round()
        if not bool((units_BD.abs() <= LARGEST).all()):
            raise ProtocolError(
                "features that are not finite, or too large to be summed (the first token of many "
                "decoders is: set model.pooling = 'last')"
            )
        y_BC = y_BC.double()
        width = x_BD.shape[1]
        upper = torch.triu_indices(width, width)
        parts = (
            torch.tensor(len(x_BD)),
            y_BC.sum(0),
            units_BD.sum(0),
            y_BC.T @ units_BD,
            (units_BD.T @ units_BD)[upper[0], upper[1]],
        )
        return Sums(*(part.to(torch.int64) for part in parts))

    def plus(self, other: Sums, sign: int = 1) -> Sums:
        """The sums over both; ``sign`` = -1: over these without those."""
        return Sums(*(getattr(self, p) + sign * getattr(other, p) for p in _PARTS))

    @staticmethod
    def over(parts: Iterable[Sums]) -> Sums:
        """The sums over all of these, of which there is one at least."""
        return reduce(Sums.plus, parts)

    def real(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of x [D] and of x by target [C, D], and of x x^T [D, D] whole: float64 in the
        features' own units."""
        width = len(self.x)
        whole = torch.zeros(width, width, dtype=torch.float64)
        upper = torch.triu_indices(width, width)
        whole[upper[0], upper[1]] = self.xx.double() * STEP**2
        whole = whole + whole.triu(1).T
        return self.x.double() * STEP, self.xy.double() * STEP, whole

    def packed(self) -> Params:
        """As it travels: each part in as few bytes a number as its largest takes."""
        return {name: pack(getattr(self, name)) for name in _PARTS}

    @staticmethod
    def unpacked(tensors: Params, targets: int, width: int) -> Sums:
        """The inverse of ``packed``, for whatever came.

        Raises:
            ProtocolError: other sizes, or sums that no rows can have.
        """
        zero = Sums.zero(targets, width)
        if tensors.keys() != set(_PARTS):
            raise ProtocolError(f"sums have the parts {_PARTS}, not {sorted(tensors)}")
        parts = [unpack(tensors[name], getattr(zero, name), name) for name in _PARTS]
        sums = Sums(*parts)
        sums.check()
        return sums

    def check(self) -> None:
        """Raises ProtocolError for sums of features that no rows can have."""
        if self.rows <= 0:
            if self.rows or any(bool(getattr(self, part).any()) for part in _PARTS):
                raise ProtocolError("sums of no rows are not 0")
            return
        x, _, xx = self.real()
        spread = xx - torch.outer(x, x) / self.rows
        check_spread(spread, xx, "sums of products that are not positive semidefinite")


def check_spread(spread_DD: Tensor, xx_DD: Tensor, what: str) -> None:
    """Raises ProtocolError (``what``) where sums of products, less those of means, are not positive
    semidefinite."""
    tolerance = 1e-9 * float(xx_DD.diagonal().abs().sum()) + STEP**2
    eye = tolerance * torch.eye(len(xx_DD), dtype=torch.float64)
    if int(torch.linalg.cholesky_ex(spread_DD + eye).info) != 0:
        raise ProtocolError(what)


def pack(x: Tensor) -> Tensor:
    """[numbers, bytes] uint8: the low bytes of two's complement, least first."""
    flat = x.reshape(-1)
    largest = int(torch.maximum(flat.max(), -flat.min() - 1)) if len(flat) else 0
    width = min(8, max(0, largest).bit_length() // 8 + 1)
    return flat.contiguous().view(torch.uint8).reshape(-1, 8)[:, :width].contiguous()


def unpack(packed: Tensor, like: Tensor, name: str) -> Tensor:
    fits = packed.dtype == torch.uint8 and packed.dim() == 2 and len(packed) == like.numel()
    if not fits or not 1 <= packed.shape[1] <= 8:
        raise ProtocolError(f"the sums '{name}' have another size; is it the same model?")
    width = packed.shape[1]
    whole = torch.zeros(len(packed), 8, dtype=torch.uint8)
    whole[:, 8 - width :] = packed
    numbers = whole.view(torch.int64).reshape(-1) >> (8 * (8 - width))  # keeps the sign
    return numbers.reshape(like.shape)
