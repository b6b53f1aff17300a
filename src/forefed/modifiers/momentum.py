"""Client momentum: Karimireddy, He, Jaggi, "Learning from history for Byzantine robust
optimization" (ICML 2021, arXiv 2012.10333), Algorithm 2: what a client sends is its running mean of
updates, so that the honest ones differ less, and whoever differs in every round stands out.

    m <- u in a client's first round, beta m + (1 - beta) u later; m is sent

Departure: an update is what several local steps changed (published: one gradient). With cohorts
below the population a client's mean is from its own rounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core.states import State
from forefed.core.types import ClientContext, Update
from forefed.modifiers.modifier import Modifier


class Momentum(Modifier):
    """Clients send the running mean of their updates, which they keep to themselves."""

    kind: Literal["momentum"] = "momentum"
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of what was sent before."""

    source: ClassVar[str] = "Karimireddy et al., arXiv 2012.10333"
    accepts: ClassVar[tuple[str, ...]] = ("delta",)
    replayable: ClassVar[bool] = False

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        if update.n_examples == 0:
            return update, state
        mixed = {
            n: self.beta * state[n] + (1 - self.beta) * x if n in state else x
            for n, x in (update.grad or {}).items()
        }
        return replace(update, grad=mixed), {**state, **mixed}
