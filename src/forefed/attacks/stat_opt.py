"""The statically optimised attacks of Fang et al., "Local model poisoning attacks to
Byzantine-robust federated learning" (USENIX Security 2020, arXiv 1911.11815).

    against Krum            -lambda sign mu, lambda from its upper bound halved until Krum takes it
    against trimmed means   every coordinate beyond the benign extreme on the side that mu avoids,
    and medians             up to a factor of two from it, uniformly

Departures: the least lambda is a share of its bound (published: 1e-5 of whatever unit); where the
extreme lies at 0 the spread of the coordinate decides how far beyond it is.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.krum import scores
from forefed.aggregate.vectors import distances
from forefed.attacks.attack import Crafted, Scene
from forefed.attacks.vectors import mean_and_std, repeated

SELECTING = ("krum", "multi_krum", "bulyan")
FACTOR = 2.0


class StatOpt(Crafted):
    """Worst values for the kind of rule: just chosen by Krum, or beyond all benign ones."""

    kind: Literal["stat_opt"] = "stat_opt"
    against: Literal["auto", "krum", "trimmed_mean"] = "auto"
    """The rule that it is made for; "auto": Krum's version where the server selects by it, else
    that against trimmed means and medians."""

    source: ClassVar[str] = "Fang et al., arXiv 1911.11815"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        krum = self.against == "krum" or (self.against == "auto" and scene.aggregator in SELECTING)
        return for_krum(known_ND, scene) if krum else beyond(known_ND, scene)


def for_krum(known_ND: Tensor, scene: Scene) -> Tensor:
    """-lambda sign mu, the largest lambda with which Krum takes it: [F, D]."""
    n, d = len(known_ND) + scene.f, known_ND.shape[1]
    mean_D = known_ND.mean(dim=0)
    direction_D = -mean_D.sign()
    apart_NN = distances(known_ND)
    count = max(1, min(n - scene.f - 2, len(known_ND) - 1))
    nearest = apart_NN.sort(dim=1).values[:, 1 : count + 1].sum(dim=1).min()
    first = nearest / (max(1, n - 2 * scene.f - 1) * d**0.5)
    bound = float(first + known_ND.norm(dim=1).max() / d**0.5)
    size = bound
    while size > 1e-5 * bound:
        m_FD = repeated(size * direction_D, scene.f)
        squared_NN = distances(torch.cat([known_ND, m_FD])).square()
        if int(scores(squared_NN, scene.f).argmin()) >= len(known_ND):
            return m_FD
        size /= 2
    return repeated(size * direction_D, scene.f)


def beyond(known_ND: Tensor, scene: Scene) -> Tensor:
    """Outside of the benign values in every coordinate, against the sign of mu: [F, D]."""
    mean_D, std_D = mean_and_std(known_ND)
    high_D, low_D = known_ND.amax(dim=0), known_ND.amin(dim=0)
    up = mean_D < 0
    extreme_D = torch.where(up, high_D, low_D)
    # up to FACTOR away from 0, or back to 1 / FACTOR, whatever lies outside; at 0, by the spread
    outward = extreme_D.sign() == torch.where(up, 1.0, -1.0)
    room_D = torch.where(
        outward, extreme_D.abs() * (FACTOR - 1), extreme_D.abs() * (1 - 1 / FACTOR)
    )
    least = 1e-6 * (std_D + known_ND.abs().max() + 1e-30)
    room_D = torch.where(room_D > 0, room_D, std_D).clamp(min=least)
    drawn_FD = scene.key.fold("beyond").uniform((scene.f, len(mean_D))).double().clamp(min=1e-3)
    return extreme_D + torch.where(up, 1.0, -1.0) * room_D * drawn_FD
