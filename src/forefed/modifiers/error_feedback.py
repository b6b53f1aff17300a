"""Error feedback: what a codec lost of a client's change is added to its next one.

Source: Seide et al. (Interspeech 2014) for one bit, Karimireddy et al. (arXiv 1901.09847) for any
compression, whose Algorithm 1 this is, with a client's change as the gradient. With the codec
"sparse" it is top-k with error feedback; with "quantised" it carries the rounding over.
Departure: what lies at a client that was not asked for some rounds is out of date, so it shrinks
by ``decay`` in each of them (published: every worker is there in every step).

The residual is the client's own: it never travels, and a checkpoint keeps it. An answer that is
lost on its way takes what it carried with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core import trees
from forefed.core.states import State, below
from forefed.core.types import ClientContext, Params, Update
from forefed.modifiers.modifier import Modifier


class Feedback(Modifier):
    """Base of modifiers that keep at the client what the codec lost."""

    decay: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Factor on what was kept, for every round in which the client did not send the parameter."""

    accepts: ClassVar[tuple[str, ...]] = ("delta",)
    replayable: ClassVar[bool] = False
    restores: ClassVar[bool] = True

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.codec.payload in self.accepts and not config.codec.loses:
            yield (
                f"modifiers: '{self.kind}' keeps what is lost on the way, and codec.kind = "
                f"'{config.codec.kind}' loses nothing; use codec.kind = 'sparse' or 'quantised', "
                "or drop it"
            )
        kinds = [m.kind for m in config.modifiers]
        for later in config.modifiers[kinds.index(self.kind) + 1 :] if self.kind in kinds else ():
            if type(later).on_send is not Modifier.on_send:
                remedy = "drop one" if later.private else f"put '{self.kind}' after it"
                yield (
                    f"modifiers: '{later.kind}' would change what '{self.kind}' believes to be "
                    f"sent; {remedy}"
                )

    def kept(self, state: State, names: Params, ctx: ClientContext) -> State:
        """What was kept before, with what time has taken of it: also of parameters that the client
        does not send in this round."""
        if not state:
            return {}
        away = ctx.round - 1 - int(state["round"])
        return {
            place: x * self.decay ** (away if place.partition("/")[2] in names else away + 1)
            for place, x in state.items()
            if place != "round"
        }

    def now(self, ctx: ClientContext) -> State:
        """When the client was there last, to be kept with the rest."""
        return {"round": torch.tensor(ctx.round)}


class ErrorFeedback(Feedback):
    """What the codec lost of a client's change is added to its next one."""

    kind: Literal["error_feedback"] = "error_feedback"

    source: ClassVar[str] = "Karimireddy et al., arXiv 1901.09847, Algorithm 1"

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        delta = update.grad or {}
        if not update.n_examples or not trees.all_finite(delta):
            return update, state  # counts for nothing, or is refused: it must not stay here
        kept = self.kept(state, delta, ctx)
        residual = below(kept, "residual")
        whole = {n: x + residual[n] if n in residual else x for n, x in delta.items()}
        lost = trees.subtract(whole, ctx.arriving(whole))
        new = {**kept, **{f"residual/{n}": x for n, x in lost.items()}, **self.now(ctx)}
        return replace(update, grad=whole), new
