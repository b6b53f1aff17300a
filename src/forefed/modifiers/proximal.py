"""The proximal term of FedProx: Li et al., "Federated optimization in heterogeneous networks"
(arXiv 1812.06127), Algorithm 2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.core.states import State
from forefed.core.types import ClientContext, Params
from forefed.modifiers.modifier import Modifier


class Proximal(Modifier):
    """A pull to where the client's round started, which limits how far clients drift apart."""

    kind: Literal["proximal"] = "proximal"
    mu: Annotated[float, Field(ge=0)] = 0.01
    """Every step's gradient gets mu (w - w_start) added, exactly and whatever the engine. The
    logged loss is without it."""

    source: ClassVar[str] = "Li et al., arXiv 1812.06127"

    @property
    def bends_steps(self) -> bool:
        return self.mu > 0

    def on_step(
        self, grad: Params, at: Params, state: State, ctx: ClientContext, step: int
    ) -> tuple[Params, State]:
        if not self.mu:
            return grad, state
        return {n: g + self.mu * (at[n] - ctx.start[n]) for n, g in grad.items()}, state

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if self.mu > 0 and config.client.max_steps == 1:
            yield (
                "modifiers: 'proximal' pulls back to where a client started, and its first step "
                "starts there; allow more steps (client.max_steps), or drop it"
            )
