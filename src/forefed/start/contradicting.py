"""Whose sums contradict the others': left out before a head is solved, where clients may lie.

A head in closed form is one sum, so one client that lies in it moves it, and no rule for the rounds
sees that. Here every client's sums are judged by ridge regression from the others' (in ``FOLDS``
groups of clients, each by the head of the other groups), in which each client counts once, as how
many rows it has is its own claim. What stands in sums is enough for three questions:

- How do the others' predictions go with the targets that it claims? With centred predictions p of a
  row, the sum of E[p_c y_c] over all targets. Below ``SHARE`` of the median client's by ``ERRORS``
  standard errors: its labels say something else than the others'. (Below 0 would not do: liars that
  lie alike agree with one another.) A client of one class is judged, too. Where the median is not
  clear itself, as rows of the kind cannot be told apart, nobody is accused.
- How long are its features? More than ``LONG`` times the median client's mean square: sums that
  would drown what they do not contradict.
- How large are the others' predictions for it? The same bound.

Who stands out most goes first, then all is judged again without, until nobody does or so many are
left out as are assumed. Source: ours.

What it cannot see: lies that agree with the others, or little ones within these bounds; words
(``start.words``). Held-out losses are judged elsewhere (``federation.votes``). Axes: D features,
C targets.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from forefed.start.sums import Sums
from forefed.start.targets import Targets

FOLDS = 8
REGULARISATION = 0.1
"""Of the judging heads, as a share of the features' mean variance."""
LONG = 2.0
SHARE = 0.5
ERRORS = 3.0


@dataclass(frozen=True)
class Means:
    """Of a client's rows, or of several clients each of which counts once; float64."""

    y_C: Tensor
    x_D: Tensor
    xy_CD: Tensor
    xx_DD: Tensor

    @staticmethod
    def of(sums: Sums) -> Means:
        x, xy, xx = sums.real()
        n = max(sums.rows, 1)
        return Means(sums.mean_target(), x / n, xy / n, xx / n)

    def plus(self, other: Means, sign: int = 1) -> Means:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Means(*(a + sign * b for a, b in pairs))

    def over(self, clients: int) -> Means:
        return Means(*(x / clients for x in vars(self).values()))

    def ridge(self) -> Tensor:
        """Centred targets on centred features, [C, D]."""
        covariance = self.xx_DD - torch.outer(self.x_D, self.x_D)
        damping = REGULARISATION * covariance.diagonal().mean().clamp_min(1e-12)
        along = self.xy_CD - torch.outer(self.y_C, self.x_D)
        eye = torch.eye(len(self.x_D), dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(covariance + damping * eye, along.T)
        return solved.T


@dataclass(frozen=True)
class Judged:
    """A client's sums by the others' head. ``error``: the standard error of ``agreement``;
    ``length`` and ``size``: mean squares of its features and of the predictions."""

    agreement: float
    error: float
    length: float
    size: float


def judged(own: Means, rows: int, others: Means, w_CD: Tensor, targets: Targets) -> Judged:
    """What the others' head makes of a client's rows."""
    shift_D = own.x_D - others.x_D
    within_DD = own.xx_DD - torch.outer(own.x_D, own.x_D)
    moved_C, spread_C = w_CD @ shift_D, ((w_CD @ within_DD) * w_CD).sum(1).clamp_min(0)
    with_own_C = (w_CD * (own.xy_CD - torch.outer(own.y_C, others.x_D))).sum(1)
    square_C = own.y_C
    if not targets.named:  # a number is no presence of something: from the others' mean
        with_own_C = with_own_C - others.y_C * moved_C
        square_C = torch.full_like(own.y_C, (targets.length / targets.unit) ** 2)
    return Judged(
        agreement=float(with_own_C.sum()),
        error=float((square_C * spread_C).sum() / rows) ** 0.5,
        length=float(own.xx_DD.diagonal().sum()),
        size=float((spread_C + moved_C**2).sum()),
    )


def contradicting(
    clients: Sequence[int], sums_of: Callable[[int], Sums], targets: Targets, most: int
) -> tuple[int, ...]:
    """Clients whose sums contradict the others', at most so many; all of them have rows."""
    left: list[int] = []
    while len(left) < most and len(clients) - len(left) >= 3:
        here = [c for c in sorted(clients) if c not in left]
        found = standing_out(here, sums_of, targets)
        if not found:
            break
        left += found[: most - len(left)]
    return tuple(sorted(left))


def standing_out(
    clients: Sequence[int], sums_of: Callable[[int], Sums], targets: Targets
) -> list[int]:
    """Those of these clients that contradict the others, the worst first."""
    folds = [clients[i::FOLDS] for i in range(min(FOLDS, len(clients)))]
    summed = [reduce(Means.plus, (Means.of(sums_of(c)) for c in fold)) for fold in folds]
    whole = reduce(Means.plus, summed)
    found: dict[int, Judged] = {}
    for fold, part in zip(folds, summed, strict=True):
        others = whole.plus(part, -1).over(len(clients) - len(fold))
        w_CD = others.ridge()
        for client in fold:
            sums = sums_of(client)
            found[client] = judged(Means.of(sums), sums.rows, others, w_CD, targets)
    agreement, error, length, size = (
        max(statistics.median(getattr(x, name) for x in found.values()), 1e-12)
        for name in ("agreement", "error", "length", "size")
    )
    clear = agreement > ERRORS * error  # else the others' head says nothing of anybody
    worst: dict[int, float] = {}
    for client, x in found.items():
        times = max(x.length / length, x.size / size)
        if times > LONG:
            worst[client] = -1e6 * times
        elif clear and x.agreement + ERRORS * x.error < SHARE * agreement:
            worst[client] = x.agreement / agreement
    return sorted(worst, key=lambda client: worst[client])
