"""When the server has heard enough answers to move (as a buffer of FedBuff says, or a variance).

Every round (FedAvg), or, at unchanged parameters, over as many rounds as the noise of the answers
asks for (FwdLLM: the number of perturbations grows as the gradient shrinks).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core.settings import Choice, Registry
from forefed.core.types import Contribution


class Trigger(Choice):
    """Base of the criteria."""

    individual: ClassVar[bool] = False
    """Reads single contributions (a sum that hides them is not enough)."""

    @abstractmethod
    def enough(self, cs: Sequence[Contribution]) -> bool:
        """May the server move on these contributions, all of them since it moved last?"""


class EveryRound(Trigger):
    """The server moves in every round."""

    kind: Literal["round"] = "round"

    def enough(self, cs: Sequence[Contribution]) -> bool:
        return True


class VarianceTrigger(Trigger):
    """The server waits until the variance of the mean is small against its square."""

    kind: Literal["variance"] = "variance"
    ratio: Annotated[float, Field(gt=0)] = 4.0
    """theta: variance of the mean over the squared norm of the true gradient (as estimated)."""
    at_most: Annotated[int, Field(ge=2)] = 100
    """Answers after which the server moves in any case."""

    source: ClassVar[str] = "FwdLLM, arXiv 2308.13894"
    individual: ClassVar[bool] = True

    def enough(self, cs: Sequence[Contribution]) -> bool:
        if len(cs) >= self.at_most:
            return True
        variance, square = spread(cs)
        # |mean|^2 is too large by the mean's variance
        return variance <= self.ratio * (square - variance)


def spread(cs: Sequence[Contribution]) -> tuple[float, float]:
    """V and |mean|^2 of the whole vector: V = sum_m |x_m - mean|^2 / (n (n - 1)).

    Each parameter over the n clients that trained it; infinite V where that is one alone (or none
    at all trained).
    """
    held: dict[str, list[torch.Tensor]] = {}
    for c in cs:
        for name, x in c.delta.items():
            held.setdefault(name, []).append(x.flatten())
    if not held or min(len(xs) for xs in held.values()) < 2:
        return float("inf"), 0.0
    variance = square = 0.0
    for xs in held.values():
        x_ND = torch.stack(xs).double()
        n, mean_D = len(xs), x_ND.mean(0)
        variance += float((x_ND - mean_D).square().sum()) / (n * (n - 1))
        square += float(mean_D.square().sum())
    return variance, square


TRIGGERS: Registry[Trigger] = Registry("trigger", [EveryRound, VarianceTrigger])
