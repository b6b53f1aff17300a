"""Gossip: every node trains its own model, and averages it with its neighbours'. No server.

Sources: D-PSGD (Lian et al., arXiv 1705.09056); several local steps, then several gossip steps:
DFedAvg and DFedSAM-MGS (Shi et al., arXiv 2302.04083); differences to public copies, by which any
codec may carry the models: CHOCO-SGD (Koloskova et al., arXiv 1902.00340), Algorithm 2; robust
mixing around the own model: MoNNA (Farhadkhani et al., arXiv 2209.10931).

    z_i <- x_i - (change by local training)                   every node, from its own model
    ``steps`` times:
        send C(h_i - z_i) to the neighbours;  h_i <- h_i - what arrives    h_j: public copies
        z_i <- z_i - gamma A({h_i - h_j}: j neighbour, and 0 for itself)
    x_i <- z_i

A is the run's aggregator over descent directions as ever (old - new): with ``mean`` the sum of
W_ij (h_i - h_j) by Metropolis weights (graphs.py), so the mean of all models is kept, whatever the
codec loses. With a codec that loses nothing the model itself is sent, and h_j = z_j. A robust rule
sees the same differences, the node's own among them as zero (``nna`` with ``pivot = "own"``:
MoNNA; ``centred_clipping``: clipping around the own model).

A node that was not drawn, or whose training was lost, rests: it sends nothing, hears nothing and
keeps its model; its weight goes to its neighbours' own models, and robust rules count it as
hostile. Hostile nodes of a simulation train and mix as others do, and send what the attack makes of
all honest models of the moment: the same to all neighbours. What is tested as the model is the mean
over honest nodes; every node is tested, too.

Departures: local training is several steps of any optimiser; every node counts equally, whatever
its number of examples.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny

from forefed.aggregate.aggregator import PerUnit
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Key
from forefed.core.settings import Slot
from forefed.core.states import State, keep
from forefed.core.types import ClientContext, Contribution, Lost, Order, Params, Reply, Update
from forefed.federation.adversary import Adversary
from forefed.federation.report import RoundReport
from forefed.federation.state import RunState
from forefed.federation.topology.graphs import GRAPHS, Graph, Ring, connected, metropolis
from forefed.federation.topology.graphs import neighbours as beside_of
from forefed.federation.topology.topology import Hook, Topology
from forefed.wire import Codec, Dense

if TYPE_CHECKING:
    from forefed.federation.star import Star

Models = dict[int, Params]


class Gossip(Topology):
    """No server: nodes train, and average with their neighbours on a graph."""

    kind: Literal["gossip"] = "gossip"
    graph: Annotated[SerializeAsAny[Graph], Slot(GRAPHS, "who are neighbours?")] = Ring()
    steps: Annotated[int, Field(ge=0)] = 1
    """Gossip steps after every round of training (DFedSAM-MGS: several; 0: nobody hears others)."""
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None
    """How far a node goes towards what it hears. None: all the way; a codec that loses something
    needs less (about the share of a difference that arrives)."""

    source: ClassVar[str] = "Lian et al., arXiv 1705.09056; Shi et al., arXiv 2302.04083"
    central: ClassVar[bool] = False

    def conflicts(self, config: Any) -> Iterator[str]:
        codec = config.codec
        wrong = [
            what
            for broken, what in (
                (codec.payload != "delta", "a codec of models (codec.kind = 'dense')"),
                (config.assign.kind != "everything", "assign.kind = 'everything'"),
                (config.sharing.kind != "everything", "sharing.kind = 'everything'"),
                (config.trigger.kind != "round", "trigger.kind = 'round'"),
                (config.download.by_records, "download.kind = 'dense'"),
                (not config.server.plain, "server 'sgd' with lr = 1"),
                ({config.start.kind, config.guard.kind} - {"none", "auto"}, "no start or guard"),
                (any(m.serves or m.private for m in config.modifiers), "no server's modifiers"),
                (config.partition.kind == "sites", "nodes of this machine (see 'forefed peer')"),
                (config.oversampling, "oversampling = 0"),
                (config.deadline_s is not None, "no deadline_s (gossip here is synchronous)"),
            )
            if broken
        ]
        if wrong:
            yield (
                f"topology.kind = '{self.kind}' has no server, so nothing of a server's may be "
                f"set: strategy = 'fedavg' is a good place to begin; needed: {'; '.join(wrong)}"
            )
        for one in config.modifiers:
            if one.restores:
                yield (
                    f"modifiers: '{one.kind}' carries what a codec lost, and under topology.kind = "
                    f"'{self.kind}' the public copies do that; drop it"
                )
        if codec.payload == "delta" and codec.loses and self.gamma is None:
            yield (
                f"topology.gamma: with codec.kind = '{codec.kind}' a node must not go all the way "
                "towards what it hears; set it, for example to 0.5 for 'quantised', 0.1 for "
                "'sparse'"
            )

    def check(self, population: int, key: Key) -> None:
        """Nodes can reach one another.

        Raises:
            UserError: they cannot, or the graph does not exist.
        """
        if not connected(population, self.graph.edges(population, key)):
            raise UserError(
                f"topology.graph = '{self.graph.kind}': some of the {population} nodes hear "
                "nothing of the others, not even by way of somebody; add edges"
            )

    def trained_by(self, codec: Codec) -> Codec:
        return Dense() if codec.payload == "delta" else codec  # a node's own change does not travel

    def models(self, state: RunState) -> Mapping[int, Params]:
        prefix = "node."
        numbers = sorted(int(o.removeprefix(prefix)) for o in state.states if o.startswith(prefix))
        return {c: state.of(f"{prefix}{c}") for c in numbers}

    def round(
        self, star: Star, state: RunState, on_outcome: Hook | None
    ) -> tuple[RunState, RoundReport]:
        began = time.perf_counter()
        count, cohort = len(star.transport.members()), star.drawn(state).clients
        held = {c: state.of(f"node.{c}") or state.params for c in range(count)}
        updates, lost = self._trained(star, state.round + 1, held, cohort, on_outcome)
        trained = time.perf_counter()
        talk = Talk.of(self, star, state, held, [u.client for u in updates])
        models = held | {u.client: trees.subtract(held[u.client], u.grad or {}) for u in updates}
        sent = 0
        for turn in range(self.steps):
            models, more = talk.mixed(models, turn)
            sent += more
        honest = [models[c] for c in range(count) if c not in talk.hostile]
        mean = _mean(honest)
        apart = max(trees.norm(trees.subtract(x, mean)) for x in honest)
        states = {**state.states, **{f"node.{c}": x for c, x in models.items()}}
        for owner, kept in talk.states().items():
            states = keep(states, owner, kept)
        after = RunState(state.round + 1, mean, states)
        ended = time.perf_counter()
        seconds = {"plan": 0.0, "clients": trained - began, "aggregate": ended - trained}
        numbers = {"disagreement": apart, "resting": float(count - len(updates)), **talk.counted}
        report = RoundReport(
            after.round,
            cohort,
            tuple(updates),
            tuple(lost),
            sent,
            sent,
            seconds,
            metrics=numbers,
        )
        return after, report

    def _trained(
        self, star: Star, number: int, held: Models, cohort: Sequence[int], on_outcome: Hook | None
    ) -> tuple[list[Update], list[Lost]]:
        """The changes by local training, each from the node's own model, and who rests."""
        updates: list[Update] = []
        lost: list[Lost] = []
        names = tuple(n for unit in star.units for n in unit.params)
        transport = star.transport
        if isinstance(transport, Adversary):
            transport = transport.inner  # lies are told to neighbours, later
        for client in sorted(cohort):
            order = Order(star.key.value, number, client, names, held[client])
            (outcome,) = transport.exchange([order], None)
            if isinstance(outcome, Reply):
                try:
                    update = star.server.receive(order, outcome.payload)
                    if not trees.all_finite(update.grad or {}):
                        raise ProtocolError("its change is not finite")
                    updates.append(update)
                except ProtocolError as error:
                    outcome = Lost(number, client, "error", str(error))
            if isinstance(outcome, Lost):
                lost.append(replace(outcome, bytes_down=0))
            if on_outcome:
                on_outcome(outcome)
        return updates, lost


@dataclass
class Talk:
    """The gossip steps of one round (local to it): who is there, the public copies, what rules
    keep."""

    topology: Gossip
    star: Star
    round: int
    beside: list[list[int]]
    weights: list[dict[int, float]]
    present: list[int]
    center: Params
    """Mean of the honest models before the round, from which lies are counted."""
    copies: Models
    rules: dict[int, State]
    counted: Counter[str]

    @staticmethod
    def of(
        topology: Gossip, star: Star, state: RunState, held: Models, present: Sequence[int]
    ) -> Talk:
        count = len(held)
        beside = beside_of(count, topology.graph.edges(count, star.key))
        hostile = hostile_of(star)
        copies = {c: state.of(f"copy.{c}") or x for c, x in held.items()}  # first: alike, and known
        rules = {c: state.of(f"rule.{c}") for c in held}
        center = _mean([x for c, x in held.items() if c not in hostile])
        weights = metropolis(beside)
        number = state.round + 1
        return Talk(
            topology, star, number, beside, weights, sorted(present), center, copies, rules,
            Counter(),
        )  # fmt: skip

    @property
    def hostile(self) -> frozenset[int]:
        return hostile_of(self.star)

    def mixed(self, models: Models, turn: int) -> tuple[Models, int]:
        """All models after one gossip step, and the bytes that it took."""
        codec, bytes_sent = self.star.codec, 0
        key = self.star.key.fold("gossip", self.round, turn)
        saying = {c: models[c] for c in self.present} | self.lies(models)
        names = tuple(self.center)
        for c in self.present:
            # a codec that loses nothing says the model itself, and no copy is kept
            nothing = {n: torch.zeros_like(x) for n, x in saying[c].items()}
            old = self.copies[c] if codec.loses else nothing
            order = Order(key.value, self.round, c, names, old)
            ctx = ClientContext(order=order)
            said = codec.encode(Update(c, 1, trees.subtract(old, saying[c])), ctx)
            arrived = codec.decode(said, order).grad or {}
            self.copies = {**self.copies, c: trees.subtract(old, arrived)}
            bytes_sent += len(said) * len({*self.beside[c]} & {*self.present})
        after = {c: self.mixed_at(c, models[c], key) for c in self.present}
        return {**models, **after}, bytes_sent

    def mixed_at(self, node: int, own: Params, key: Key) -> Params:
        """One node's model after it has heard its neighbours."""
        aggregator, weights = self.star.server.aggregator, self.weights[node]
        base = self.copies[node] if self.star.codec.loses else own
        if node in self.hostile:
            base = own  # it knows what it says, and that it lies
        heard = [j for j in self.beside[node] if j in self.present]
        rest = 1 - sum(weights[j] for j in heard)
        cs = [Contribution(node, rest, {n: torch.zeros_like(x) for n, x in own.items()})]
        cs += [Contribution(j, weights[j], trees.subtract(base, self.copies[j])) for j in heard]
        if isinstance(aggregator, PerUnit):  # drops what is not finite, and counts it as hostile
            nothing = {n: torch.full_like(x, torch.nan) for n, x in own.items()}
            cs += [
                Contribution(j, weights[j], nothing) for j in self.beside[node] if j not in heard
            ]
        cs.sort(key=lambda c: c.client)
        ctx = self.star.server.context(RunState(self.round - 1, own), tuple(c.client for c in cs))
        ctx = replace(ctx, key=key.fold(node))
        total, self.rules[node], numbers = aggregator(cs, self.rules[node], ctx)
        self.counted.update(numbers)
        gamma = 1.0 if self.topology.gamma is None else self.topology.gamma
        return trees.step(own, total, gamma)

    def lies(self, models: Models) -> Models:
        """What hostile nodes say their models are."""
        adversary = self.star.transport
        if not isinstance(adversary, Adversary):
            return {}
        updates = {c: Update(c, 1, trees.subtract(self.center, models[c])) for c in self.present}
        names = tuple(self.center)
        told = adversary.lies(updates, self.round, self.center, dict.fromkeys(updates, names))
        return {u.client: trees.subtract(self.center, u.grad or {}) for u in told}

    def states(self) -> dict[str, State]:
        """What is kept for the next round."""
        kept = {f"rule.{c}": x for c, x in self.rules.items()}
        if self.star.codec.loses:
            kept |= {f"copy.{c}": x for c, x in self.copies.items()}
        return kept


def hostile_of(star: Star) -> frozenset[int]:
    """The hostile nodes of a simulation."""
    return star.transport.who if isinstance(star.transport, Adversary) else frozenset()


def _mean(models: Sequence[Params]) -> Params:
    """The mean by parameter, in float64."""
    return {
        n: torch.stack([m[n].double() for m in models]).mean(0).to(x) for n, x in models[0].items()
    }
