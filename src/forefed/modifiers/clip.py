"""Norm clipping at the client: McMahan et al., "Learning differentially private recurrent language
models" (arXiv 1710.06963), section 3, flat clipping."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core import trees
from forefed.core.states import State
from forefed.core.types import ClientContext, Update
from forefed.modifiers.modifier import Modifier


class ClipNorm(Modifier):
    """Scale a client's change down to an l2 norm of at most ``norm``; bounds any one client."""

    kind: Literal["clip"] = "clip"
    norm: Annotated[float, Field(gt=0)] = 1.0

    source: ClassVar[str] = "McMahan et al., arXiv 1710.06963"
    accepts: ClassVar[tuple[str, ...]] = ("delta",)

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        delta = update.grad or {}
        norm = trees.norm(delta)
        if norm <= self.norm:
            return update, state
        return replace(update, grad={n: x * (self.norm / norm) for n, x in delta.items()}), state
