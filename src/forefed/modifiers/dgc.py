"""Deep Gradient Compression: Lin et al. (ICLR 2018, arXiv 1712.01887), section 3 and Algorithm 2.

    client  g <- clip(g);  u <- m u + g;  v <- v + u      g: the client's change of this round
            what arrives of v is sent; it leaves v, and u where it is not 0 (momentum masking)
    server  averages                                                              (aggregator)

Error feedback with the momentum before the residual, so that a change that was sent late has the
momentum that it would have had; masking stops the momentum of what was just sent. Which elements go
is the codec's: "sparse" with its ``ratio`` and ``warm_up``. Momentum m makes the steps 1 / (1 - m)
times as long where masking does not stop it: lower ``server.lr`` with it.
Departures: the momentum is over rounds (published: over steps); rounding of values stays in v; the
bound of the clip is given for one client (published code: a bound of the whole, times n^-1/2);
``decay`` for clients that were away, as in error_feedback.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core import trees
from forefed.core.states import State, below
from forefed.core.types import ClientContext, Update
from forefed.modifiers.error_feedback import Feedback


class Dgc(Feedback):
    """Momentum, then error feedback, at the client; what was sent loses its momentum (DGC)."""

    kind: Literal["dgc"] = "dgc"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """m; 0: error feedback."""
    nesterov: bool = False
    """u <- m (u + g) and v <- v + u + g instead."""
    masking: bool = True
    """Momentum of the elements that were sent starts anew."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest l2 norm of a change before it is added; None: any."""

    source: ClassVar[str] = "Lin et al., arXiv 1712.01887, Algorithm 2"

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        g = update.grad or {}
        if not update.n_examples or not trees.all_finite(g):
            return update, state
        norm = trees.norm(g) if self.clip is not None else 0.0
        if self.clip is not None and norm > self.clip:
            g = {n: x * (self.clip / norm) for n, x in g.items()}
        kept = self.kept(state, g, ctx)
        u_, v_ = below(kept, "momentum"), below(kept, "residual")
        m, zero = self.momentum, {n: x * 0 for n, x in g.items()}
        u, v = {**zero, **trees.pick(u_, g.keys() & u_)}, {**zero, **trees.pick(v_, g.keys() & v_)}
        if self.nesterov:
            u = {n: m * (u[n] + x) for n, x in g.items()}
            v = {n: v[n] + (u[n] + x) for n, x in g.items()}
        else:
            u = {n: m * u[n] + x for n, x in g.items()}
            v = {n: v[n] + u[n] for n in g}
        sent = ctx.arriving(v)
        if self.masking:
            u = {n: x.masked_fill(sent[n] != 0, 0.0) for n, x in u.items()}
        lost = trees.subtract(v, sent)
        new = {
            **kept,
            **{f"momentum/{n}": x for n, x in u.items()},
            **{f"residual/{n}": x for n, x in lost.items()},
            **self.now(ctx),
        }
        return replace(update, grad=v), new
