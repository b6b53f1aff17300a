"""Flow: Panchal et al., "Flow: per-instance personalized federated learning" (NeurIPS 2023, arXiv
2211.15281): beside the common path every client trains one of its own, and a gate chooses between
them, matrix by matrix and token by token (``core/routes.py``). Whoever has few rows is left with
the common path. Clients are stateless: the own path begins at the common one in every round.

    client i: its rows in two halves, drawn anew in every round
      B_own <- B
      first half:   train B_own, everything through the own path
      second half:  train the gates, on the mixture, towards the own path by ``pull``
      second half:  train B and the head, everything through the common path
      send B, the head and the gates; keep B_own and the gates as trained, for its own answers

Departures: a gate reads the input of its own matrix at each token (published: pooled over the
text), so that a language model's gate sees no later token and padding counts for nothing; the last
two parts follow one another (published: they alternate by batches); the pull -log(q^2 + 1e-6) is
that of the gate's bias (published: of every instance's q); a client answers with the path of its
last round (published: trained anew for each test). Defects of the published code that are not here:
the own path was averaged, its copy from the common one was commented out, the gate was trained in
the wrong part, and one sign pulled linear and recurrent gates to opposite sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from forefed.core.lora import B
from forefed.core.routes import ALONE, COMMON, GATE_IN, GATE_OUT, HARD, OWN, ROUTE, SOFT, part_of
from forefed.core.states import State, States
from forefed.core.types import ClientContext, Order, Params
from forefed.data.examples import ClientData
from forefed.local.phases import Phase, in_phases, phase_conflicts
from forefed.local.training import LocalTraining, Trainer, Walked
from forefed.modifiers import Modifier

FLOOR = 1e-6


class Flow(LocalTraining):
    """Trains a path of the client's own, a gate, and the common path, one after the other."""

    kind: Literal["flow"] = "flow"  # type: ignore[assignment]
    pull: Annotated[float, Field(ge=0)] = 0.001
    """lambda: how strongly the gates are drawn to the client's own path."""
    source: ClassVar[str] = "Flow, arXiv 2211.15281"

    def walk(
        self, trainer: Trainer, order: Order, data: ClientData, states: States, ctx: ClientContext
    ) -> Walked:
        names = {n: part_of(n) for n in order.assigned}
        gates = tuple(n for n, part in names.items() if part in (GATE_IN, GATE_OUT))
        own = tuple(n for n, part in names.items() if part == OWN)
        common = tuple(n for n, part in names.items() if not part)

        def routed(route: tuple[float, ...]) -> Params:
            like = {n: order.params[n] for n, part in names.items() if part == ROUTE}
            return {n: torch.tensor(route).to(x) for n, x in like.items()}

        shuffled = data.train[order.key.fold("halves").permutation(len(data.train))]
        half = len(shuffled) // 2
        begun = replace(order, params={**order.params, **_copies(order.params, own)})
        pull = Pull(strength=self.pull / max(1, len(own)))
        walked = in_phases(
            trainer,
            begun,
            data,
            states,
            ctx,
            (
                Phase(own, shuffled[:half], routed(ALONE)),
                Phase(gates, shuffled[half:], routed(SOFT), modifiers=(pull,)),
                Phase(common, shuffled[half:], routed(COMMON)),
            ),
        )
        # without a row for its own path a client is left with the common one
        params = {**walked.params, **routed(HARD if half else COMMON)}
        return replace(walked, params=params, kept={n: params[n] for n in gates})

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        yield from phase_conflicts(self, config)
        if config.sharing.kind != "flow":
            yield (
                f"client.kind = 'flow': sharing.kind = '{config.sharing.kind}' would send the "
                "client's own path; set sharing.kind = 'flow'"
            )


class Pull(Modifier):
    """Draws gates to the own path: adds the slope of -log(q^2 + 1e-6) by the gate's bias, where
    q = sigmoid(bias)."""

    kind: Literal["pull"] = "pull"
    strength: float = 0.0

    def on_step(
        self, grad: Params, at: Params, state: State, ctx: ClientContext, step: int
    ) -> tuple[Params, State]:
        found = dict(grad)
        for n in grad:
            if part_of(n) == GATE_OUT:
                slope = torch.zeros_like(at[n])
                slope[-1] = pulled(at[n][-1])
                found[n] = grad[n] + self.strength * slope
        return found, state


def pulled(z: torch.Tensor) -> torch.Tensor:
    """d/dz of -log(q^2 + 1e-6), q = sigmoid(z): below 0 for every z."""
    q = torch.sigmoid(z)
    return -2 * q * q * (1 - q) / (q * q + FLOOR)


def _copies(params: Params, own: tuple[str, ...]) -> Params:
    """The common B of each matrix, under the name of the own one."""
    stems = {n.partition(f".{B}")[0]: x for n, x in params.items() if f".{B}" in n}
    return {n: stems[n.rpartition(".")[0]].clone() for n in own}
