"""HyperFL: Guo et al., "A new federated learning framework against gradient inversion attacks"
(AAAI 2025; the variant that makes adapters only): a client trains its head, then the network that
makes its adapter and the embedding from which that is made (``core/hyper.py``).

    client i: train the head                       ``head_epochs``
              train the network and e_i            ``epochs``
              send the network; keep e_i and the head

Departures: the network makes LoRA's B (published: all of a convolutional extractor; A rests here);
AdamW (published: SGD with momentum 0.5). Its promise against gradient inversion does not hold: the
network's bias has the gradient of what it makes, and without a bias the rank-one gradient of its
matrix has the same direction. ``forefed audit`` says so of every such run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.core.hyper import EMBEDDING, part_of
from forefed.core.keys import Key
from forefed.core.states import States
from forefed.core.types import ClientContext, Order
from forefed.data.examples import ClientData
from forefed.local.phases import Phase, in_phases, phase_conflicts
from forefed.local.training import PRIVATE, LocalTraining, Trainer, Walked


class HyperFl(LocalTraining):
    """Trains the client's head, then the network that makes its adapter, with its embedding."""

    kind: Literal["hyperfl"] = "hyperfl"  # type: ignore[assignment]
    epochs: Annotated[int, Field(ge=1)] = 5
    head_epochs: Annotated[int, Field(ge=1)] = 1
    """Of the head, before the others."""
    source: ClassVar[str] = "HyperFL, arXiv 2412.07187"

    def walk(
        self, trainer: Trainer, order: Order, data: ClientData, states: States, ctx: ClientContext
    ) -> Walked:
        made = tuple(n for n in order.assigned if part_of(n))
        head = tuple(n for n in order.assigned if not part_of(n))
        known = states.get(PRIVATE, {})
        drawn = {
            n: Key(order.run).fold("embedding", order.client).normal(order.params[n].shape)
            for n in made
            if part_of(n) == EMBEDDING and n not in known
        }
        begun = {n: x.to(order.params[n]) for n, x in drawn.items()}
        phases = (Phase(head, data.train, epochs=self.head_epochs), Phase(made, data.train))
        begun_order = replace(order, params={**order.params, **begun})
        return in_phases(trainer, begun_order, data, states, ctx, phases)

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        yield from phase_conflicts(self, config)
        if config.sharing.kind != "hyperfl":
            yield (
                f"client.kind = 'hyperfl': sharing.kind = '{config.sharing.kind}' would send the "
                "client's embedding; set sharing.kind = 'hyperfl'"
            )
