"""Of some candidates for every direction the one along the last global update.

Source: FwdLLM (arXiv 2308.13894). Client and server choose alike, from keys and from what the
server broadcasts, so nothing more travels than with plain directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from statistics import NormalDist
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from forefed.core import trees
from forefed.core.types import Order, Params
from forefed.directions.fresh import RandomKind
from forefed.directions.sets import RandomDirections, fields_of


@dataclass(frozen=True)
class SelectedDirections(RandomDirections):
    """For every k the one of ``candidates`` directions that points most along ``anchor``.

    ``anchor`` is r, the unit vector of the last global update over the group's parameters. Chosen
    is the largest <v, r>: the cosine up to the length of v, which varies by 1 / sqrt(2 d), and
    which left out makes E[v v^T] = I + (kappa - 1) r r^T exact for Gaussian values, with
    kappa = E[<v, r>^2]. ``combine`` takes the share along r that was seen too often out again, so
    the estimate is unbiased. (The published code keeps the bias.)
    """

    candidates: int = field(kw_only=True)
    anchor: Params = field(kw_only=True, compare=False)

    @cached_property
    def picks(self) -> list[int]:
        """The chosen numbers, direction k out of k * candidates to (k + 1) * candidates - 1.

        The index of a candidate would be log2(candidates) bits of a message; it is rebuilt here.
        """
        every = RandomDirections(**{**fields_of(self), "k": self.k * self.candidates})
        along_KC = every.project(self.anchor).reshape(self.k, self.candidates)
        return [k * self.candidates + int(c) for k, c in enumerate(along_KC.argmax(1))]

    def places(self, ks: Sequence[int]) -> tuple[int, Sequence[int]]:
        return self.step, [self.picks[k] for k in ks]

    def combine(self, like: Params, slopes_K: Tensor) -> Params | None:
        """mean_k slopes[k] v_k, less (1 - 1/kappa) of its part along the anchor."""
        biased = super().combine(like, slopes_K)
        if biased is None:
            return None
        too_much = (1 - 1 / largest_square(self.candidates)) * trees.dot(self.anchor, biased)
        return biased | {
            n: (biased[n].double() - too_much * r.double()).to(biased[n].dtype)
            for n, r in self.anchor.items()
        }


class Candidates(RandomKind):
    """The best of some candidates in every place: the nearest to the last global update."""

    kind: Literal["candidates"] = "candidates"
    count: Annotated[int, Field(ge=2, le=1000)] = 10
    """Candidates for every direction (FwdLLM); needs the modifier "last_update". The estimate is
    freed of the bias of the choice. Directions of projected gradients are not chosen."""

    source: ClassVar[str] = "FwdLLM, arXiv 2308.13894"
    along_last: ClassVar[bool] = True

    def chosen(
        self, fresh: RandomDirections, order: Order, names: Sequence[str], projected: bool
    ) -> RandomDirections:
        """``fresh`` as it is before there is a last update, and where that is zero."""
        last = {} if projected else order.remembered("last_update", names)
        norm = trees.norm(last) if last else 0.0
        if not norm:
            return fresh
        anchor = {n: x / norm for n, x in last.items()}
        return SelectedDirections(**fields_of(fresh), candidates=self.count, anchor=anchor)

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if all(m.kind != "last_update" for m in config.modifiers):
            yield (
                "directions.kind = 'candidates' compares them with the last global update; add "
                "'last_update' to modifiers"
            )
        if self.distribution != "gauss16":
            yield (
                "directions.kind = 'candidates': the bias of the choice is known for Gaussian "
                "directions only; set directions.distribution = 'gauss16'"
            )


@cache
def largest_square(count: int) -> float:
    """kappa: E[x^2] of the largest x of ``count`` standard normal values (1, 1, 1.28, ...).

    The integral of x^2 count pdf(x) cdf(x)^(count - 1), by the trapezoidal rule (which converges
    faster than any power here), rounded so that every mathematical library gives the same bits.
    """
    law, step = NormalDist(), 1 / 64
    points = [i * step for i in range(-12 * 64, 12 * 64 + 1)]
    terms = (x * x * count * law.pdf(x) * law.cdf(x) ** (count - 1) for x in points)
    return round(step * math.fsum(terms), 9)
