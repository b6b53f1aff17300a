"""One number a row, from -2 to 2 over the ends of the scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Json, Params
from forefed.data.examples import Indices
from forefed.start.solver import Head, Solver
from forefed.start.sums import Sums
from forefed.start.targets.targets import Candidate, Chosen, Targets

LARGEST = 2.0
"""Of a number (``models.objectives.regression``)."""
LEAST = 1e-6
"""By which a head is multiplied where held-out rows see nothing in it."""


class Numbers(Targets):
    """Ridge regression.

    Held-out rows send the products of what each head says, what the words say, 1 and the true
    number, so the best mixture of the three and its squared error follow exactly, with nothing to
    try. The head is the one with the least error of its own.
    """

    solvers: ClassVar[tuple[str, ...]] = ("ridge",)
    named: ClassVar[bool] = False
    unit: ClassVar[float] = 2.0**-16

    @property
    def columns(self) -> int:
        return 1

    @property
    def length(self) -> float:
        return LARGEST

    def of(self, labels: Indices) -> Tensor:
        numbers_N = torch.from_numpy(np.asarray(labels, dtype=np.float64)).clamp(-LARGEST, LARGEST)
        return (numbers_N / self.unit).round()[:, None]

    def check(self, sums: Sums) -> None:
        if abs(int(sums.y)) > sums.rows * LARGEST / self.unit:
            raise ProtocolError("a sum of numbers that are not on the scale")

    def possible(self, n: Tensor | None, y_C: Tensor) -> tuple[int, Tensor]:
        assert n is not None
        rows = max(int(n.round()), 2)
        largest = rows * LARGEST / self.unit
        return rows, y_C.clamp(-largest, largest)

    def usable(self, total: Sums) -> list[str]:
        if total.rows < 2:
            raise UserError(
                "start: the clients have one training row, from which no number can be learned; "
                "give more rows, or set start.kind = 'none'"
            )
        return []

    def head(self, solver: Solver, candidate: Candidate, prior: str) -> Head:
        return solver.ridge(candidate[1])

    def tried(self, features: Sequence[Tensor], words_NC: Tensor | None, labels: Indices) -> Params:
        """``products`` [H, 4, 4] of (f, w, 1, y), ``n``."""
        y_N1 = torch.from_numpy(np.asarray(labels, dtype=np.float64))[:, None]
        words_N1 = torch.zeros_like(y_N1) if words_NC is None else words_NC
        parts = [torch.cat([f, words_N1, torch.ones_like(y_N1), y_N1], 1) for f in features]
        n = torch.tensor(float(len(y_N1)), dtype=torch.float64)
        return {"products": torch.stack([x_N4.T @ x_N4 for x_N4 in parts]), "n": n}

    def shapes(self, heads: int, words: bool) -> dict[str, tuple[int, ...]]:
        return {"products": (heads, 4, 4), "n": ()}

    def choose(self, tried: Params, candidates: Sequence[Candidate]) -> Chosen:
        n = float(tried["n"])
        alone = [_mixture(x, (0, 2), n) for x in tried["products"]]
        table: list[Json] = [
            {"solver": kind, "regularisation": strength, "loss": error}
            for (kind, strength), (_, error) in zip(candidates, alone, strict=True)
        ]
        at = min(range(len(alone)), key=lambda i: (alone[i][1], -candidates[i][1]))
        (times, plus), error = alone[at]
        scale = max(times, LEAST)
        chosen = Chosen(at, scale, (plus,), 0.0, scale, (plus,), table)
        products = tried["products"][at]
        if float(products[1, 1]) > 0:
            (first, second, third), least = _mixture(products, (0, 1, 2), n)
            shares: list[Json] = [{"share": 0.0, "loss": error}]
            if first > LEAST and second > 0:
                share = second / first
                shares.append({"share": share, "loss": least})
                return Chosen(at, scale, (plus,), share, first, (third,), table, shares)
            return Chosen(at, scale, (plus,), 0.0, scale, (plus,), table, shares)
        return chosen


def _mixture(products: Tensor, parts: tuple[int, ...], n: float) -> tuple[tuple[float, ...], float]:
    """The multiples of these parts that are nearest to the true number, and their mean squared
    error; two rows' worth of the prior that the head is right as it is keep few rows from bending
    it."""
    at = list(parts)
    prior = torch.zeros(len(at), dtype=torch.float64)
    prior[0] = 1.0
    weight = 2.0 * torch.diag(products[at, at] / n).clamp_min(1e-12)
    left = products[at][:, at] + weight
    found = torch.linalg.solve(left, products[at, 3] + weight @ prior)
    error = products[3, 3] - 2 * found @ products[at, 3] + found @ products[at][:, at] @ found
    return tuple(found.tolist()), max(float(error) / n, 0.0)
