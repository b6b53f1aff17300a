"""Attacks that look for the longest step: Shejwalkar, Houmansadr, "Manipulating the Byzantine"
(NDSS 2021), sections IV and V.

    dyn_opt   mu + gamma p with the gamma that moves the server's own rule farthest
    min_max   the largest gamma with max_i |m - u_i| <= max_ij |u_i - u_j|
    min_sum   the largest gamma with sum_i |m - u_i|^2 <= min_i sum_j |u_i - u_j|^2

Departures: gamma of the latter two by bisection to 1e-6 (published: halved steps from 10); that of
the first by 16 evaluations of the rule, on a grid and then between its best one's neighbours
(public code compares with the former iterate, not with the best). ``min_sum`` has the least sum, as
the authors' code.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.vectors import distances
from forefed.attacks.attack import Crafted, Scene
from forefed.attacks.vectors import Direction, against, farthest, repeated

GRID = tuple(2.0**i for i in range(-4, 5))
EVALUATIONS = 16


class DynOpt(Crafted):
    """The step that moves the server's own rule farthest from the benign mean."""

    kind: Literal["dyn_opt"] = "dyn_opt"
    direction: Direction = "unit"
    """p: -mu / |mu|, -sign mu, or -sigma."""

    source: ClassVar[str] = "Shejwalkar and Houmansadr, NDSS 2021"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        mean_D, p_D = known_ND.mean(dim=0), against(self.direction, known_ND)
        length = float(p_D.norm())
        if not length:
            return repeated(mean_D, scene.f)
        # as many hostile ones beside those that are known as there are beside all
        count = max(1, round(len(known_ND) * scene.f / max(1, scene.n - scene.f)))
        radius = float((known_ND - mean_D).norm(dim=1).max()) / length
        unit = max(radius, float(mean_D.norm()) / length)

        def moved(gamma: float) -> float:
            m_FD = repeated(mean_D + gamma * unit * p_D, count)
            return float((scene.rule(torch.cat([known_ND, m_FD])) - mean_D).norm())

        tried = {gamma: moved(gamma) for gamma in GRID}
        while len(tried) < EVALUATIONS:
            best = max(tried, key=lambda g: tried[g])
            places = sorted(tried)
            i = places.index(best)
            left = places[i - 1] if i else best / 2
            right = places[i + 1] if i + 1 < len(places) else best * 2
            wider = left if best / left > right / best else right
            tried[(best * wider) ** 0.5] = moved((best * wider) ** 0.5)
        best = max(tried, key=lambda g: tried[g])
        return repeated(mean_D + best * unit * p_D, scene.f)


class MinMax(Crafted):
    """As far from the mean as two benign updates are from one another."""

    kind: Literal["min_max"] = "min_max"
    direction: Direction = "std"
    """p: -mu / |mu|, -sign mu, or -sigma."""

    source: ClassVar[str] = "Shejwalkar and Houmansadr, NDSS 2021"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        bound = float(distances(known_ND).max())

        def fits(m_D: Tensor) -> bool:
            return float((known_ND - m_D).norm(dim=1).max()) <= bound

        return repeated(farthest(known_ND, against(self.direction, known_ND), fits), scene.f)


class MinSum(Crafted):
    """As far from all benign updates as the most central of them is."""

    kind: Literal["min_sum"] = "min_sum"
    direction: Direction = "std"
    """p: -mu / |mu|, -sign mu, or -sigma."""

    source: ClassVar[str] = "Shejwalkar and Houmansadr, NDSS 2021"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        bound = float(distances(known_ND).square().sum(dim=1).min())

        def fits(m_D: Tensor) -> bool:
            return float((known_ND - m_D).square().sum()) <= bound

        return repeated(farthest(known_ND, against(self.direction, known_ND), fits), scene.f)
