"""Along which directions slopes are taken: the slot ``directions``.

How many there are, how they are distributed, whose they are and how outlying slopes are clamped
stands here, once: engines walk along what they are given, and codecs of slopes project exact
gradients on it. Client and server make the same ones from the order, so nothing but slopes travels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field
from torch import Tensor

from forefed.core.keys import Distribution
from forefed.core.settings import Choice
from forefed.core.types import DirectionSet, Order, Params
from forefed.directions.sets import BasisDirections, RandomDirections

Count = Annotated[int, Field(ge=1, le=2**20)]
"""Each is a forward pass of its own; a million are more than any client walks along in a step."""


class StepDirections(DirectionSet, Protocol):
    """A set of directions for every local step, and the estimate that slopes along it stand for.

    ``exact``: the slopes of a step are the gradient's elements.
    """

    exact: ClassVar[bool]

    def at(self, step: int) -> StepDirections:
        """Those of another step."""

    def combine(self, like: Params, slopes_K: Tensor) -> Params | None:
        """The estimate of the gradient over ``like``; None: the step is skipped."""

    def noise(self, elements: int, parts: int = 1) -> float:
        """v = E|estimate - gradient|^2 / |gradient|^2 over so many elements; ``parts`` of a batch
        have directions of their own."""


class Directions(Choice):
    """Base of the kinds of directions."""

    shared: bool = False
    """All clients of a round walk along the same directions (and project on the same, where slopes
    travel): their slopes can be averaged, which rebuilds the slopes of the mean loss, but more
    clients then do not lower the variance. False: each client has directions of its own."""
    head_k: Count | Literal["all"] = 64
    """Where slopes travel: directions on which the head's exact gradient is projected; "all": its
    elements, exact."""
    head_distribution: Distribution = "rademacher"
    """Of the directions on which the head's gradient is projected."""

    exact: ClassVar[bool] = False
    """Slopes along them are the gradient itself."""
    lasting: ClassVar[bool] = False
    """The same directions serve the whole run."""
    along_last: ClassVar[bool] = False
    """Reads the last global update (modifier "last_update")."""

    @abstractmethod
    def of(
        self,
        order: Order,
        names: Sequence[str] | None = None,
        *,
        projected: bool = False,
        parts: int = 1,
    ) -> StepDirections:
        """The directions of the first local step.

        Args:
            order: what client and server know of the round.
            names: the parameters that they run over (None: all that are assigned).
            projected: an exact gradient is projected on them, which costs no passes.
            parts: of the batch that have directions of their own: so many times as many.
        """

    def of_head(self, order: Order, names: Sequence[str]) -> StepDirections:
        """Those on which the head's exact gradient is projected."""
        if self.head_k == "all":
            return BasisDirections()
        return self.drawn(order, names, self.head_k, self.head_distribution, projected=True)

    @property
    def slope_bound(self) -> float:
        """Slopes are clamped to this multiple of the running median of |slope|; 0: never."""
        return 0.0

    def drawn(
        self, order: Order, names: Sequence[str], k: int, law: Distribution, projected: bool
    ) -> RandomDirections:
        """``k`` random ones: the client's own or shared, shaped where the server says so."""
        tag, stream = ("G", 0) if self.shared else ("C", order.client)
        curvature = order.remembered("curvature", names)
        scale = {n: 1 / h.sqrt() for n, h in curvature.items()}
        fresh = RandomDirections(order.run, order.round, stream, k, law, tag, scale=scale)
        return self.chosen(fresh, order, names, projected)

    def chosen(
        self, fresh: RandomDirections, order: Order, names: Sequence[str], projected: bool
    ) -> RandomDirections:
        """As many as ``fresh`` has, which it may be."""
        return fresh

    def conflicts(self, config: Any) -> Iterator[str]:
        sent, walked = config.codec.sends_slopes, config.engine.estimates
        own = (self.kind != "fresh" and not self.exact) or self.model_dump(exclude_defaults=True)
        if own and not (walked or sent or config.engine.undecided):
            yield (
                "directions: an exact engine has no directions to share, count or draw unless "
                "codec.kind = 'scalars' projects its gradient"
            )
        head = {"head_k": self.head_k, "head_distribution": self.head_distribution}
        if (walked or config.engine.undecided) and not sent:
            for name, value in head.items():
                if value != type(self).model_fields[name].default:
                    yield (
                        f"directions.{name}: the head's gradient is projected where slopes travel; "
                        "set codec.kind = 'scalars', or leave it out"
                    )
        bent = any(m.bends_steps for m in config.modifiers)
        if self.shared and sent and (bent or not config.client.linear):
            yield (
                f"directions.shared with codec.kind = '{config.codec.kind}' averages slopes before "
                "anything is rebuilt, which is exact for plain gradient steps only; set "
                "client.optimiser.kind = 'sgd' without momentum and weight decay, without the "
                "modifier 'proximal', or codec.kind = 'dense'"
            )
