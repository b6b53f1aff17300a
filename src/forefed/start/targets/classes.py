"""One class a row: its targets are 1 for the class and 0 for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import nll_loss, one_hot

from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Params
from forefed.data.examples import Indices
from forefed.start.solver import Head, Solver
from forefed.start.sums import Sums, check_spread
from forefed.start.targets.targets import (
    SCALES,
    SHARES,
    Candidate,
    Chosen,
    Targets,
    chosen_by,
    missing,
    with_words,
)

RIDGE = 8.0
"""Logits of a ridge head, which are near 0 and 1, are multiplied by it before they are scaled."""


class Classes(Targets):
    """Discriminant, or ridge regression.

    The head is the most regularised discriminant (else ridge) whose held-out accuracy is the best
    one's but for ``TOLERANCE`` of its standard error: held-out rows that resemble the training rows
    are all answered by every candidate, and the weakest regularisation is then the worst of them
    elsewhere. The scale has the least smoothed loss (Platt's targets, 1999): n rows without an
    error do not say that there is none, but that the others have about 1 / (n + C) each, so the
    logits of separable rows do not grow without bound.
    """

    solvers: ClassVar[tuple[str, ...]] = ("discriminant", "ridge")
    partition: ClassVar[bool] = True

    def of(self, labels: Indices) -> Tensor:
        return one_hot(torch.from_numpy(np.asarray(labels)), self.columns).double()

    def enough(self, labels: Indices, least: int) -> Indices:
        counts = np.bincount(labels, minlength=self.columns)
        kept: Indices = np.flatnonzero((counts >= least)[labels])
        return kept

    def check(self, sums: Sums) -> None:
        if bool((sums.y < 0).any()) or int(sums.y.sum()) != sums.rows:
            raise ProtocolError("counts of classes are not those of the rows")
        if not torch.equal(sums.xy.sum(0), sums.x):
            raise ProtocolError("sums of features and counts of rows contradict each other")

    def inside(self, sums: Sums) -> None:
        if sums.rows <= 0:
            return
        _, xy_CD, xx_DD = sums.real()
        there = sums.y > 0
        if bool(xy_CD[~there].any()):
            raise ProtocolError("features of a class without rows")
        between = (xy_CD[there] / sums.y[there, None]).T @ xy_CD[there]
        check_spread(xx_DD - between, xx_DD, "products that do not fit the features by class")

    def possible(self, n: Tensor | None, y_C: Tensor) -> tuple[int, Tensor]:
        y_C = y_C.clamp_min(1)
        return int(y_C.sum()), y_C

    def usable(self, total: Sums) -> list[str]:
        if self.columns < 2:
            raise UserError(
                "start: the rows have one class only, so there is nothing to tell apart; check "
                "data.task.label"
            )
        if total.rows < self.columns:
            raise UserError(
                f"start: the clients have {total.rows} training rows for {self.columns} classes; "
                "check data.task.label, give more rows, or set start.kind = 'none'"
            )
        there = total.y > 0
        if int(there.sum()) == 1:
            (only,) = (name for name, x in zip(self.names, there.tolist(), strict=True) if x)
            raise UserError(
                f"start: every training row of the clients is of class '{only}', so there is "
                "nothing to tell apart; check data.task.label"
            )
        absent = [name for name, x in zip(self.names, there.tolist(), strict=True) if not x]
        return [missing("no client has a training row of", absent)] if absent else []

    def strengths(self, solver: str) -> Sequence[float]:
        return (0.03, 0.3) if solver == "ridge" else super().strengths(solver)

    def head(self, solver: Solver, candidate: Candidate, prior: str) -> Head:
        kind, share = candidate
        if kind == "discriminant":
            return solver.discriminant(share, prior == "counts")
        found = solver.ridge(share)
        if prior == "uniform":
            found = found.times(1.0, -solver.mean_target_C)
        return found.times(RIDGE)

    def tried(self, features: Sequence[Tensor], words_NC: Tensor | None, labels: Indices) -> Params:
        """``loss`` and ``flat`` [H, S, T] (of the row's class; the mean over all), ``correct``
        [H, S], ``n``."""
        labels_N = torch.from_numpy(np.asarray(labels))
        losses, flat, correct = [], [], []
        for features_NC in features:
            each = with_words(features_NC, words_NC)
            logs = [[(s * x).log_softmax(1) for s in SCALES] for x in each]
            right = [[nll_loss(x, labels_N, reduction="sum") for x in row] for row in logs]
            losses.append(torch.tensor(right, dtype=torch.float64))
            flat.append(torch.tensor([[-x.mean(1).sum() for x in row] for row in logs]).double())
            correct.append(torch.tensor([(x.argmax(1) == labels_N).sum() for x in each]).double())
        sums = {"loss": losses, "flat": flat, "correct": correct}
        n = torch.tensor(float(len(labels_N)), dtype=torch.float64)
        return {**{name: torch.stack(parts) for name, parts in sums.items()}, "n": n}

    def shapes(self, heads: int, words: bool) -> dict[str, tuple[int, ...]]:
        each = (heads, len(SHARES) if words else 1, len(SCALES))
        return {"loss": each, "flat": each, "correct": each[:2], "n": ()}

    def choose(self, tried: Params, candidates: Sequence[Candidate]) -> Chosen:
        n, classes = float(tried["n"]), self.columns
        smoothing = classes / (n + classes)
        losses_HST = ((1 - smoothing) * tried["loss"] + smoothing * tried["flat"]) / n
        accuracy_HS = tried["correct"] / n
        return chosen_by(accuracy_HS, "accuracy", n, losses_HST, candidates, self.solvers)
