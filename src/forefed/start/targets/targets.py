"""What a head is fitted to: its kind's part of the sums, of the solution and of the choice.

Axes: N rows, C targets, H candidate heads, S shares of the words, T scales.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from forefed.core.errors import ProtocolError
from forefed.core.types import Json, Params
from forefed.data.examples import Indices
from forefed.start.solver import Head, Solver
from forefed.start.sums import Sums

SCALES = tuple(2.0**k for k in range(-8, 7))
"""Candidates by which logits are multiplied (inverse temperatures)."""
SHARES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Candidates by which the words' logits are multiplied before they are added."""
TOLERANCE = 0.25
"""Standard errors of the held-out quality within which a more regularised head is taken."""
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Candidates of regularisation, as shares of the features' mean variance."""

Candidate = tuple[str, float]
"""A solver and its regularisation."""


@dataclass(frozen=True)
class Chosen:
    """What held-out rows have chosen.

    Logits of the head alone are ``scale`` f + ``shift``; with words ``together`` (f + ``share`` w)
    + ``shift_with_words`` (no shift: none).
    """

    position: int = 0
    scale: float = 1.0
    shift: tuple[float, ...] = ()
    share: float = 0.0
    together: float = 1.0
    shift_with_words: tuple[float, ...] = ()
    tried: list[Json] = field(default_factory=list)
    """What every candidate reached..."""
    shares: list[Json] = field(default_factory=list)
    """... and the chosen one with words."""


@dataclass(frozen=True)
class Targets(ABC):
    """Base of the kinds. ``names``: the task's label names."""

    names: tuple[str, ...]

    solvers: ClassVar[tuple[str, ...]]
    """What ``start.solver`` may name, the preferred one first."""
    named: ClassVar[bool] = True
    """Are targets of classes or labels, which have a share of the rows?"""
    unit: ClassVar[float] = 1.0
    """Of a target in the sums."""
    partition: ClassVar[bool] = False
    """Has every row one target of 1 and no other, so that sums over targets are sums over rows?"""

    @property
    def columns(self) -> int:
        """Targets of a row."""
        return len(self.names)

    @property
    def length(self) -> float:
        """Of a row's targets in their own units, at most."""
        return 1.0

    @abstractmethod
    def of(self, labels: Indices) -> Tensor:
        """Targets [N, C] in whole units, float64."""

    def enough(self, labels: Indices, least: int) -> Indices:
        """Positions of rows that no sum tells apart from fewer than ``least`` rows."""
        n = len(labels)
        return np.arange(n if n >= least else 0)

    @abstractmethod
    def check(self, sums: Sums) -> None:
        """Raises ProtocolError: sums of targets that no rows can have."""

    def inside(self, sums: Sums) -> None:
        """Raises ProtocolError: sums of features by target that no rows can have (by Cauchy and
        Schwarz). Sums with noise are none of rows, and need not pass."""
        _, xy_CD, xx_DD = sums.real()
        most_C = sums.y.double()
        if not self.named:
            most_C = torch.full_like(most_C, sums.rows * (self.length / self.unit) ** 2)
        bound_CD = torch.outer(most_C, xx_DD.diagonal()) * (1 + 1e-9)
        if bool((xy_CD**2 > bound_CD).any()):
            raise ProtocolError("features by target longer than the features themselves")

    @property
    def blocks(self) -> int:
        """Parts of what a row adds to the sums, each of length 1 at most (start/private.py)."""
        return 3 if self.partition else 5

    @abstractmethod
    def possible(self, n: Tensor | None, y_C: Tensor) -> tuple[int, Tensor]:
        """How many rows and which sums of targets there may be, of noisy whole ones."""

    @abstractmethod
    def usable(self, total: Sums) -> list[str]:
        """What is missing among the rows of all clients, in words.

        Raises:
            UserError: no head can be made of them.
        """

    def candidates(self, solver: str, regularisation: float | str) -> list[Candidate]:
        """What is tried, in order of preference among equals."""
        kinds = self.solvers if solver == "auto" else (solver,)
        if not isinstance(regularisation, str):
            return [(kind, regularisation) for kind in kinds]
        return [(kind, strength) for kind in kinds for strength in self.strengths(kind)]

    def strengths(self, solver: str) -> Sequence[float]:
        return STRENGTHS

    @abstractmethod
    def head(self, solver: Solver, candidate: Candidate, prior: str) -> Head: ...

    @abstractmethod
    def tried(self, features: Sequence[Tensor], words_NC: Tensor | None, labels: Indices) -> Params:
        """What held-out rows say about candidates: sums over rows, float64.

        Args:
            features: logits [N, C] of every head.
            words_NC: what the words add; None: nothing.
        """

    @abstractmethod
    def shapes(self, heads: int, words: bool) -> dict[str, tuple[int, ...]]:
        """Of ``tried``."""

    @abstractmethod
    def choose(self, tried: Params, candidates: Sequence[Candidate]) -> Chosen: ...


def chosen_by(
    quality_HS: Tensor,
    name: str,
    weight: float,
    losses_HST: Tensor,
    candidates: Sequence[Candidate],
    solvers: Sequence[str],
) -> Chosen:
    """The most regularised candidate of the preferred solver whose quality without words is the
    best one's; then the share of words of the least loss among those of the best quality.

    Args:
        quality_HS: a share, by which a head is as good as another (``within``).
        weight: of how many cases it is the share.
        losses_HST: mean losses, by which a scale is chosen.
    """
    best: Any = losses_HST.min(2)
    loss_HS, scale_HS = best.values, best.indices

    def line(at: int, share: int) -> Json:
        return {"loss": float(loss_HS[at, share]), name: float(quality_HS[at, share])}

    near = within(quality_HS[:, 0], weight)
    first = min(near, key=lambda i: solvers.index(candidates[i][0]))
    same = [i for i in near if candidates[i][0] == candidates[first][0]]
    at, share = max(same, key=lambda i: candidates[i][1]), 0
    shares = range(quality_HS.shape[1]) if quality_HS.shape[1] > 1 else ()
    if shares:
        share = min(within(quality_HS[at], weight), key=lambda i: float(loss_HS[at, i]))
    return Chosen(
        position=at,
        scale=SCALES[int(scale_HS[at, 0])],
        share=SHARES[share],
        together=SCALES[int(scale_HS[at, share])],
        tried=[
            {"solver": kind, "regularisation": strength, **line(i, 0)}
            for i, (kind, strength) in enumerate(candidates)
        ],
        shares=[{"share": SHARES[i], **line(at, i)} for i in shares],
    )


def within(quality: Tensor, weight: float) -> list[int]:
    """Positions of shares of ``weight`` cases that are the best one's, or lack no more than
    ``TOLERANCE`` of its standard error."""
    top = float(quality.max())
    slack = TOLERANCE * (max(top * (1 - top), 0.0) / weight) ** 0.5
    return [i for i, x in enumerate(quality.tolist()) if x >= top - slack]


def with_words(features_NC: Tensor, words_NC: Tensor | None) -> list[Tensor]:
    """Logits with every share of what the words say; the head's own where there are none."""
    if words_NC is None:
        return [features_NC]
    return [features_NC + share * words_NC for share in SHARES]


def missing(what: str, names: Sequence[str]) -> str:
    """A sentence about classes that no head can know."""
    more = " and others" if len(names) > 10 else ""
    them = "it" if len(names) == 1 else "them"
    return f"{what} {', '.join(names[:10])}{more}: the head cannot know {them}"
