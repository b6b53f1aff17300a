"""Gossip on a ring: every node trains its own model and averages it with its two neighbours'.

Source: decentralised SGD with a fixed doubly stochastic matrix (Lian et al., "Can decentralized
algorithms outperform centralized algorithms?", NeurIPS 2017, arXiv 1705.09056), Algorithm 1, on
their ring: weight 1/3 each for a node and its neighbours. A toy that shows what a topology
is made of.

    x_c  <- x_c - (change by local training)          every node, from its own model
    x_c  <- (x_{c-1} + x_c + x_{c+1}) / 3             neighbours by number; two nodes: halves

The mean of all models is what is tested and exported: mixing keeps it. A node whose training was
lost mixes the model that it has. Departure: several local steps between two
mixings (published: one).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.states import keep
from forefed.core.types import Lost, Order, Params, Reply, Update
from forefed.federation.state import RunState
from forefed.federation.topology.topology import Hook, Topology
from forefed.wire.orders import encode_broadcast

if TYPE_CHECKING:
    from forefed.federation.star import RoundReport, Star


class Ring(Topology):
    """No server: nodes on a ring train, and average with their two neighbours."""

    kind: Literal["ring"] = "ring"
    source: ClassVar[str] = "Lian et al., arXiv 1705.09056"

    def conflicts(self, config: Any) -> Iterator[str]:
        server = config.server
        plain = (
            config.codec.kind == "dense"
            and (config.assign.kind, config.sharing.kind) == ("everything", "everything")
            and (config.aggregator.kind, config.collect.kind) == ("mean", "round")
            and {config.start.kind, config.guard.kind} <= {"none", "auto"}
            and not config.modifiers
            and (server.kind, server.lr, server.momentum, server.weight_decay) == ("sgd", 1, 0, 0)
            and config.server_schedule == "constant"
            and config.partition.kind != "sites"
            and config.over_select == 0
            and config.select.kind == "uniform"
        )
        if not plain:
            yield (
                "topology.kind = 'ring' has no server, so nothing of a server's may be set: take "
                "strategy = 'fedavg' (codec 'dense', assign 'everything', server 'sgd' with lr = "
                "1), no modifiers, start, guard, select or over_select, and clients of this machine"
            )

    def round(
        self, star: Star, state: RunState, on_outcome: Hook | None
    ) -> tuple[RunState, RoundReport]:
        from forefed.federation.star import RoundReport

        began, number = time.perf_counter(), state.round + 1
        nodes = list(star.transport.members())
        held = {c: state.of(_owner(c)) or state.params for c in nodes}
        updates: list[Update] = []
        lost: list[Lost] = []
        sent = 0
        after: dict[int, Params] = {}
        for client in nodes:
            order = Order(star.key.value, number, client, tuple(held[client]), held[client])
            (outcome,) = star.transport.exchange([order], star.deadline_s)
            after[client] = held[client]
            if isinstance(outcome, Reply):
                try:
                    update = star.receive(outcome, order)
                    updates.append(update)
                    after[client] = trees.step(held[client], update.grad or {}, 1.0)
                except ProtocolError as error:
                    lost.append(Lost(number, client, "transport", str(error)))
            else:
                lost.append(outcome)
            if on_outcome:
                on_outcome(outcome)
            model = Order(star.key.value, number, client, (), after[client])
            sent += len(neighbours(client, len(nodes))) * len(encode_broadcast(model))
        mixed = {
            c: _mean([after[c], *(after[n] for n in neighbours(c, len(nodes)))]) for c in nodes
        }
        mean = _mean(list(mixed.values()))
        states = state.states
        for client, own in mixed.items():
            states = keep(states, _owner(client), own)
        apart = max(trees.norm(trees.subtract(own, mean)) for own in mixed.values())
        seconds = {"plan": 0.0, "clients": time.perf_counter() - began, "aggregate": 0.0}
        report = RoundReport(
            number,
            tuple(nodes),
            tuple(updates),
            tuple(lost),
            sent,
            sent,
            seconds,
            metrics={"disagreement": apart},
        )
        return RunState(number, mean, states), report


def neighbours(node: int, count: int) -> list[int]:
    """Nodes beside this one, each once (none of a single node)."""
    return sorted({(node - 1) % count, (node + 1) % count} - {node})


def _owner(client: int) -> str:
    return f"node.{client}"


def _mean(models: list[Params]) -> Params:
    """The mean by parameter, in float64."""
    return {
        n: torch.stack([m[n].double() for m in models]).mean(0).to(x) for n, x in models[0].items()
    }
