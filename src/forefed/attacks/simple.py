"""Attacks of one line: sign flips, inner-product manipulation, noise, the largest number, copies.

Sources: Xie, Koyejo, Gupta, "Fall of empires" (UAI 2019, arXiv 1903.03936) for ``ipm``;
Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing" (ICLR
2022, arXiv 2006.09365) for ``mimic`` (departure: the copied client is the first one, not that of
largest variance); Cao, Gong, "MPAF" (CVPRW 2022, arXiv 2203.08669) for ``mpaf``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.attacks.attack import Crafted, Payload, Scene
from forefed.attacks.vectors import mean_and_std, repeated

Factor = Annotated[float, Field(gt=0)]


class SignFlip(Crafted):
    """The hostile client's own update, negated (and stretched)."""

    kind: Literal["sign_flip"] = "sign_flip"
    scale: Factor = 1.0
    """It sends -scale times what it found."""

    reads_others: ClassVar[bool] = False

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        if self.knowledge == "none":
            own_FD = repeated(known_ND.mean(dim=0), scene.f)
        return -self.scale * own_FD


class ScaledFlip(Crafted):
    """Minus the benign mean, as long as it takes to cancel it in a plain mean."""

    kind: Literal["scaled_flip"] = "scaled_flip"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        return repeated(-known_ND.mean(dim=0) * (scene.n - scene.f) / scene.f, scene.f)


class InnerProduct(Crafted):
    """A multiple of minus the benign mean (IPM): short ones pass for benign."""

    kind: Literal["ipm"] = "ipm"
    epsilon: Factor = 0.5
    """-epsilon times the mean is sent. (10, over slopes: the attack of the scalar channel.)"""

    source: ClassVar[str] = "Xie et al., arXiv 1903.03936"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        return repeated(-self.epsilon * known_ND.mean(dim=0), scene.f)


class Noise(Crafted):
    """Gaussian noise on the hostile client's own update."""

    kind: Literal["noise"] = "noise"
    sigma: Factor = 0.1
    """Standard deviation of every number, in the unit of an update."""

    reads_others: ClassVar[bool] = False

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        if self.knowledge == "none":
            own_FD = repeated(known_ND.mean(dim=0), scene.f)
        return own_FD + self.sigma * scene.key.fold("noise").normal(own_FD.shape).double()


class Extreme(Crafted):
    """A bound in every number, against the sign of the benign mean."""

    kind: Literal["extreme"] = "extreme"
    bound: Factor | None = None
    """B: +B or -B is sent; None: the largest benign number, which no bound on numbers cuts."""

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        bound = float(known_ND.abs().max()) if self.bound is None else self.bound
        return repeated(-bound * known_ND.mean(dim=0).sign(), scene.f)


class Mimic(Crafted):
    """A copy of one benign client, always the same: it counts f times more."""

    kind: Literal["mimic"] = "mimic"
    source: ClassVar[str] = "Karimireddy et al., arXiv 2006.09365"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        return repeated(known_ND[0], scene.f)


class Mpaf(Crafted):
    """A pull to a model of its own, drawn once: needs no data."""

    kind: Literal["mpaf"] = "mpaf"
    scale: Factor = 10.0
    """So many times the way to that model (published: 1e6)."""

    source: ClassVar[str] = "Cao and Gong, arXiv 2203.08669"
    payloads: ClassVar[tuple[Payload, ...]] = ("delta",)

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        d = len(scene.params)
        size = scene.params.norm() / d**0.5  # a drawn model of the size of the present one
        base_D = scene.always.fold("base").normal((d,)).double() * (float(size) or 0.02)
        return repeated(self.scale * (scene.params - base_D), scene.f)


class Lie(Crafted):
    """A little is enough: the mean plus z standard deviations, inside the benign spread."""

    kind: Literal["lie"] = "lie"
    z: Literal["table", "formula"] | Factor = "table"
    """"formula": so far that a majority of benign clients lies farther; "table": larger values, of
    the authors of "Manipulating the Byzantine", by the share of hostile clients; or a number."""

    source: ClassVar[str] = "Baruch et al., arXiv 1902.06156"

    def vectors(self, known_ND: Tensor, own_FD: Tensor, scene: Scene) -> Tensor:
        mean_D, std_D = mean_and_std(known_ND)
        return repeated(mean_D + self.deviations(scene.n, scene.f) * std_D, scene.f)

    def deviations(self, n: int, f: int) -> float:
        """z for f hostile clients of n."""
        if not isinstance(self.z, str):
            return self.z
        return by_table(n, f) if self.z == "table" else by_formula(n, f)


TABLE = {3: 0.698, 5: 0.705, 8: 0.719, 10: 0.726, 12: 0.739}
"""z by f, for n = 50."""


def by_table(n: int, f: int) -> float:
    """Between the table's shares by straight lines, at its ends as there."""
    share = 50 * f / n
    places = sorted(TABLE)
    if share <= places[0]:
        return TABLE[places[0]]
    for low, high in pairwise(places):
        if share <= high:
            part = (share - low) / (high - low)
            return TABLE[low] + part * (TABLE[high] - TABLE[low])
    return TABLE[places[-1]]


def by_formula(n: int, f: int) -> float:
    """Phi^-1((n - f - s) / (n - f)), s = floor(n / 2) + 1 - f supporters that it needs."""
    supporters = n // 2 + 1 - f
    share = (n - f - supporters) / (n - f)
    return float(torch.special.ndtri(torch.tensor(min(max(share, 1e-6), 1 - 1e-6)).double()))
