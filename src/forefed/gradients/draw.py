"""Where the random directions come from along which slopes are taken: the slot ``directions``.

How many there are and their law is the engine's to say (``engine.directions``, ``engine.law``), or
the codec's for gradients that it projects; a draw says which ones they are. Client and server make
the same ones from the order, so nothing but slopes travels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from forefed.core.keys import Law
from forefed.core.settings import Choice
from forefed.core.types import Order
from forefed.gradients.directions import RandomDirections


class Draw(Choice):
    """Base of the ways to draw a step's directions."""

    shared: bool = False
    """All clients of a round walk along the same directions (and project on the same, where slopes
    travel): their slopes can be averaged, which rebuilds the slopes of the mean loss, but more
    clients then do not lower the variance. False: each client has directions of its own."""

    lasting: ClassVar[bool] = False
    """The same directions serve the whole run."""
    along_last: ClassVar[bool] = False
    """Reads the last global update (modifier "last_update")."""

    def of(
        self, order: Order, names: Sequence[str], k: int, law: Law, projected: bool = False
    ) -> RandomDirections:
        """The ``k`` directions of the first local step over ``names``.

        Args:
            order: what client and server know of the round.
            projected: an exact gradient is projected on them, which costs no passes.
        """
        return self.chosen(self.plain(order, names, k, law), order, names, projected)

    def plain(self, order: Order, names: Sequence[str], k: int, law: Law) -> RandomDirections:
        """Fresh ones: the client's own or shared, shaped where the server says so."""
        tag, stream = ("G", 0) if self.shared else ("C", order.client)
        curvature = order.remembered("curvature", names)
        scale = {n: 1 / h.sqrt() for n, h in curvature.items()}
        return RandomDirections(order.run, order.round, stream, k, law, tag, scale=scale)

    def chosen(
        self, fresh: RandomDirections, order: Order, names: Sequence[str], projected: bool
    ) -> RandomDirections:
        """As many as ``fresh`` has, which it may be."""
        return fresh

    def conflicts(self, config: Any) -> Iterator[str]:
        sent = config.codec.sends_slopes
        projects = "unless codec.kind = 'scalars' projects its gradient"
        if (self.shared or self.kind != "fresh") and not (config.engine.estimates or sent):
            yield f"directions: an exact engine has no directions to share or draw {projects}"
        bent = any(m.bends_steps for m in config.modifiers)
        if self.shared and sent and (bent or not config.client.linear):
            yield (
                f"directions.shared with codec.kind = '{config.codec.kind}' averages slopes before "
                "anything is rebuilt, which is exact for plain gradient steps only; set "
                "client.optimiser.kind = 'sgd' without momentum and weight decay, without the "
                "modifier 'proximal', or codec.kind = 'dense'"
            )
        if self.kind != "fresh" and getattr(config.engine, "directions", 1) == "all":
            yield (
                f"directions.kind = '{self.kind}': engine.directions = 'all' walks along unit "
                "vectors, so there is nothing to draw; give a number, or set directions.kind = "
                "'fresh'"
            )


class Fresh(Draw):
    """New directions in every step, from the run's key."""

    kind: Literal["fresh"] = "fresh"


FRESH = Fresh()
