"""What the server remembers from round to round and broadcasts beside the parameters.

A memo is a dict of tensors by "kind/parameter name", empty at first; a parameter that nobody
trained keeps its entry. It is a function of what the server applied, so a client that keeps up by
records (``download.kind = "scalars"``) rebuilds it bit for bit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core.settings import Choice, Registry
from forefed.core.types import Params


class Memo(Choice):
    """Base of the memos."""

    @abstractmethod
    def after(self, memo: Params, change: Params, last: Params) -> Params:
        """The memo after the server's step.

        Args:
            memo: the former one. Not changed.
            change: the aggregate (old - new) that went to the server's optimiser.
            last: the aggregate of the gradient estimates of the clients' last local steps.
        """


class Nothing(Memo):
    """Nothing is remembered."""

    kind: Literal["none"] = "none"

    def after(self, memo: Params, change: Params, last: Params) -> Params:
        return memo


class LastUpdate(Memo):
    """The last aggregate, along which candidate directions are chosen."""

    kind: Literal["last_update"] = "last_update"
    source: ClassVar[str] = "FwdLLM, arXiv 2308.13894"

    def conflicts(self, config: Any) -> Iterator[str]:
        if getattr(config.engine, "candidates", 1) == 1:
            yield (
                "memo.kind = 'last_update' is broadcast for engine.candidates; set those above 1, "
                "or drop the memo"
            )

    def after(self, memo: Params, change: Params, last: Params) -> Params:
        return memo | {f"{self.kind}/{n}": x for n, x in change.items()}


class Curvature(Memo):
    """A running mean H of squared estimates; directions become H^-1/2 times random ones."""

    kind: Literal["curvature"] = "curvature"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """nu: H <- (1 - nu) H + nu estimate^2, from H = 1."""
    floor: Annotated[float, Field(gt=0)] = 1e-8
    """Least element of H (published: none, so a direction may grow without bound)."""

    source: ClassVar[str] = "HiSo, arXiv 2506.02370"

    def conflicts(self, config: Any) -> Iterator[str]:
        if not config.codec.sends_slopes:
            yield (
                "memo.kind = 'curvature' is made of the clients' slopes; set codec.kind = 'scalars'"
            )
        counts = (
            getattr(config.engine, "directions", 1),
            getattr(config.codec, "directions", None),
            getattr(config.codec, "head_directions", None),
        )
        if "all" in counts:
            yield (
                "memo.kind = 'curvature' shapes random directions, and 'all' are unit vectors; "
                "give numbers of directions (engine.directions, codec.directions, "
                "codec.head_directions)"
            )
        if config.engine.pool is not None:
            yield (
                "memo.kind = 'curvature' changes the directions, and engine.pool keeps them for "
                "the run; drop one"
            )

    def after(self, memo: Params, change: Params, last: Params) -> Params:
        new = dict(memo)
        for name, estimate in last.items():
            place = f"{self.kind}/{name}"
            former = memo[place] if place in memo else torch.ones_like(estimate)
            mixed = (1 - self.rate) * former + self.rate * (estimate * estimate)
            new[place] = mixed.clamp(min=self.floor)
        return new


MEMOS: Registry[Memo] = Registry("memo", [Nothing, LastUpdate, Curvature])
