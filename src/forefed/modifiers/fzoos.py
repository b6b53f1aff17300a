"""FZooS: Shu et al., "Federated zeroth-order optimization using trajectory-informed surrogate
gradients" (arXiv 2308.04077), Algorithm 1.

    client  g <- grad m_i(x) + gamma / (t + 1) (grad F(x) - grad f_i(x))        local step t, from 0
            nu_i <- ridge weights, on M random features, of all values that it has asked
            sends its change, and nu_i beside it
    server  F <- the mean of nu_i

m_i is the engine's own surrogate (``engine.kind = "surrogate"``), f_i the features that the client
sent last: what everybody's surrogates say beyond its own frees its steps of its drift, less and
less as it walks away from where they were made. The features are drawn from the run's public key.

Departures: the server does not take a round back whose loss did not fall (``guard`` and
``summary.best`` are for that); the mean is weighted by examples, as that of the parameters is; a
client is not corrected before it has sent once.

M numbers travel beside the D of the change. nu_i tells the values of a client's loss nearby, which
is more than the change does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.states import State
from forefed.core.types import ClientContext, Contribution, Params, ServerContext, Update
from forefed.gradients.matern import Features, features
from forefed.modifiers.modifier import Modifier


class Fzoos(Modifier):
    """Surrogates that clients send free their steps of what is theirs alone (FZooS)."""

    kind: Literal["fzoos"] = "fzoos"
    features: Annotated[int, Field(ge=1)] = 1000
    """M, of the surrogate that travels (published: 10,000)."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Of the correction in a round's first step; 0: every client by itself."""

    source: ClassVar[str] = "FZooS, arXiv 2308.04077"
    accepts: ClassVar[tuple[str, ...]] = ("delta",)
    individual: ClassVar[bool] = True
    replayable: ClassVar[bool] = False

    _engine: Any = PrivateAttr(default=None)

    def solved(self, config: Any, members: int | None) -> Modifier:
        knowing = self.model_copy()
        knowing._engine = config.engine
        return knowing

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.engine.kind != "surrogate":
            yield "modifiers: 'fzoos' corrects surrogates; set engine.kind = 'surrogate'"

    def beside(self, params: Params, head: frozenset[str]) -> Params:
        return {"nu": torch.zeros(self.features)}

    def _features(self, ctx: ClientContext, size: int) -> Features:
        key = Key(ctx.order.run).fold("fzoos")
        return features(key, self.features, size, float(self._engine.length))

    def on_step(
        self, grad: Params, at: Params, state: State, ctx: ClientContext, step: int
    ) -> tuple[Params, State]:
        told = ctx.order.remembered(self.kind, ["nu"])
        if not self.gamma or not told or not state:
            return grad, state
        at_D = trees.flatten(trees.pick(at, grad))
        ours = self._features(ctx, len(at_D))
        # both gradients are linear in nu
        beyond_D = ours.gradient(at_D, told["nu"].double() - state["nu"].double())
        more = trees.unflatten(self.gamma / (step + 1) * beyond_D, grad)
        return {n: g + more[n].to(g) for n, g in grad.items()}, state

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        nu = torch.zeros(self.features)
        points = ctx.memory.get("points")
        if points is not None and len(points) > 1 and update.n_examples:
            ours = self._features(ctx, points.shape[1])
            nu = ours.fit(points, ctx.memory["values"], float(self._engine.ridge)).float()
            state = {"nu": nu}
        return replace(update, beside={**update.beside, f"{self.kind}/nu": nu}), state

    def on_receive(
        self, c: Contribution, state: State, ctx: ServerContext
    ) -> tuple[Contribution, State]:
        nu = c.beside[f"{self.kind}/nu"].double()
        if not c.weight:
            return c, state
        zero = torch.zeros((), dtype=torch.float64)
        total, weight = state.get("total", torch.zeros_like(nu)), state.get("weight", zero)
        return c, {**state, "total": total + c.weight * nu, "weight": weight + c.weight}

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        if "total" not in state:
            return total, state
        return total, {"nu": (state["total"] / state["weight"]).float()}

    def broadcast(self, state: State) -> State:
        return {"nu": state["nu"]} if "nu" in state else {}
