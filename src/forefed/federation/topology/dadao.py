"""DADAO: Nabli and Oyallon, "DADAO: decoupled accelerated decentralized asynchronous optimization"
(ICML 2023, arXiv 2208.00779), Algorithm 1: no server, no rounds, no common step.

Gradients and exchanges are independent Poisson clocks: every node computes a gradient once a unit
of time on average, every edge wakes by a clock of its own. A node holds six vectors X, X', Y, Y',
Z, Z', which between its events follow a linear differential equation; it is solved exactly, by the
exponential of its 6 x 6 matrix.

    dX = zeta (X' - X)    dX' = zeta (X - X')
    dY = alpha (Y' - Y)   dY' = -theta (nu X' + Y + Z)
    dZ = alpha (Z' - Z)   dZ' = zeta (Z - Z')
    gradient at node i:   r = grad f_i(X) - nu X - Y'
                          X -= gamma r;  X' -= gamma' r;  Y' += (delta + delta') r
    edge (i, j):          e = ((Y + Z)_i - (Y + Z)_j) / 2
                          Z_i -= beta e;  Z_j += beta e;  Z'_i -= beta' e;  Z'_j += beta' e

For losses that are strongly convex and smooth, with both constants known: heads on frozen features.
It takes O(n sqrt(L / mu)) gradients and O(n sqrt(chi1 chi2 L / mu)) messages to a fixed precision,
and ends at the optimum of the nodes' mean loss, without the bias of plain decentralised descent. A
round of the record is ``time`` units. Where there may be a sum, ``start = "closed_form"`` has a
head in one exact round; this is for losses without a closed form, and for no server.

Departures: X' begins where X does (published: at 0); the node adds ``ridge`` to its loss.

Legend: N nodes, D parameters in one vector.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor

from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Key
from forefed.core.settings import Slot
from forefed.core.types import Lost, Order, Params, Reply, Update
from forefed.federation.report import RoundReport
from forefed.federation.state import RunState
from forefed.federation.topology.graphs import GRAPHS, Edge, Graph, Ring, connected
from forefed.federation.topology.topology import Hook, Topology

if TYPE_CHECKING:
    from forefed.federation.star import Star

OWNER = "six"
X, X_, Y, Y_, Z, Z_ = range(6)
Positive = Annotated[float, Field(gt=0)]
Least = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Constants:
    """The algorithm's numbers for losses of these constants on a graph of these rates.

    Attributes:
        convexity, smoothness: mu and L of every node's loss.
        chi1: one over the second eigenvalue of the Laplacian of rates.
    """

    convexity: float
    smoothness: float
    chi1: float

    @property
    def nu(self) -> float:
        return self.convexity / 2

    @property
    def root(self) -> float:
        """sqrt(nu / L), by which everything slows down."""
        return math.sqrt(self.nu / self.smoothness)

    def flow(self, elapsed: float) -> Tensor:
        """What the six vectors become after some time without an event: [6, 6] float64."""
        alpha, zeta, theta = self.root / 4, self.root / 8, 1 / (2 * self.root)
        rates = torch.zeros(6, 6, dtype=torch.float64)
        for one, other, rate in ((X, X_, zeta), (X_, X, zeta), (Y, Y_, alpha), (Z, Z_, alpha)):
            rates[one, one], rates[one, other] = -rate, rate
        rates[Z_, Z], rates[Z_, Z_] = zeta, -zeta
        rates[Y_, X_], rates[Y_, Y], rates[Y_, Z] = -theta * self.nu, -theta, -theta
        return torch.linalg.matrix_exp(rates * elapsed)

    def moved(self, six_6D: Tensor, gradient_D: Tensor) -> Tensor:
        """A node after its gradient: [6, D]."""
        r_D = gradient_D - self.nu * six_6D[X] - six_6D[Y_]
        step = 1 / (4 * self.smoothness), 1 / (4 * math.sqrt(self.smoothness * self.nu))
        return six_6D + _rows(
            {X: -step[0] * r_D, X_: -step[1] * r_D, Y_: (self.root / 4 + 1) * r_D}
        )

    def exchanged(self, one_6D: Tensor, other_6D: Tensor) -> tuple[Tensor, Tensor]:
        """Two nodes after the edge between them has woken: each hears Y + Z of the other."""
        e_D = (one_6D[Y] + one_6D[Z] - other_6D[Y] - other_6D[Z]) / 2
        by = _rows({Z: e_D / 2, Z_: (2 * self.chi1 / self.root) * e_D})
        return one_6D - by, other_6D + by


def _rows(changes: Mapping[int, Tensor]) -> Tensor:
    nothing = torch.zeros_like(next(iter(changes.values())))
    return torch.stack([changes.get(row, nothing) for row in range(6)])


def resistance(nodes: int, edges: list[Edge]) -> tuple[float, float]:
    """chi1 and chi2 of a graph on which every edge wakes once a unit of time: one over the second
    eigenvalue of its Laplacian, and half of the largest effective resistance of an edge."""
    laplacian_NN = torch.zeros(nodes, nodes, dtype=torch.float64)
    for i, j in edges:
        laplacian_NN[i, i] += 1
        laplacian_NN[j, j] += 1
        laplacian_NN[i, j] = laplacian_NN[j, i] = -1
    values = torch.linalg.eigvalsh(laplacian_NN)
    inverse_NN = torch.linalg.pinv(laplacian_NN, hermitian=True)
    apart = [float(inverse_NN[i, i] + inverse_NN[j, j] - 2 * inverse_NN[i, j]) for i, j in edges]
    return 1 / float(values[1]), max(apart) / 2


class Dadao(Topology):
    """No server, no rounds: accelerated, by clocks of nodes and edges; for convex heads."""

    kind: Literal["dadao"] = "dadao"
    graph: Annotated[SerializeAsAny[Graph], Slot(GRAPHS, "who are neighbours?")] = Ring()
    smoothness: Positive = 1.0
    """Largest curvature of a node's loss. Of cross-entropy over features h: (1 + max |h|^2) / 2."""
    convexity: Least = 0.0
    """Least curvature of a node's loss (0: convex, no more)."""
    ridge: Least = 1e-2
    """Added to every node's loss: ridge / 2 times the parameters' squared norm."""
    time: Positive = 1.0
    """Units of a round of the record: gradients of a node on average."""
    safety: Annotated[float, Field(ge=1)] = 2.0
    """Edges wake so many times as often as they must."""

    source: ClassVar[str] = "Nabli and Oyallon, arXiv 2208.00779"
    central: ClassVar[bool] = False

    def conflicts(self, config: Any) -> Iterator[str]:
        client, optimiser = config.client, config.client.optimiser
        one_step = client.batch_size == "all" and client.epochs == 1
        plain = optimiser.kind == "sgd" and optimiser.plain
        wrong = [
            what
            for broken, what in (
                (config.adapter.kind != "head", "adapter.kind = 'head'"),
                (config.engine.estimates or config.engine.undecided, "an engine that is exact"),
                (not (plain and one_step), "client = {batch_size = 'all', optimiser.lr = 1}"),
                (config.codec.kind != "dense", "codec.kind = 'dense'"),
                (config.aggregator.kind != "mean", "aggregator.kind = 'mean'"),
                (config.assign.kind != "everything", "assign.kind = 'everything'"),
                (config.sharing.kind != "everything", "sharing.kind = 'everything'"),
                (config.trigger.kind != "round", "trigger.kind = 'round'"),
                (config.download.by_records, "download.kind = 'dense'"),
                (not config.server.plain, "server 'sgd' with lr = 1"),
                ({config.start.kind, config.guard.kind} - {"none", "auto"}, "no start or guard"),
                (bool(config.modifiers), "no modifiers"),
                (config.attack.kind != "none", "no attack"),
                (config.partition.kind == "sites", "nodes of this machine"),
                (config.deadline_s is not None or config.oversampling, "no deadline_s"),
            )
            if broken
        ]
        if wrong:
            yield (
                "topology.kind = 'dadao' is for exact gradients of a convex head, without a server;"
                f" strategy = 'dadao' has all of it; needed: {'; '.join(wrong)}"
            )
        if not self.convexity + self.ridge:
            yield "topology.ridge: a loss that is no more than convex needs one; set it, as 1e-2"

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

    def rates(self, nodes: int, edges: list[Edge]) -> tuple[float, Constants]:
        """How often an edge wakes in a unit of time, and the constants that follow."""
        mu, largest = self.convexity + self.ridge, self.smoothness + self.ridge
        if not edges:
            return 0.0, Constants(mu, largest, 1.0)
        chi1, chi2 = resistance(nodes, edges)
        each = self.safety * math.sqrt(2 * chi1 * chi2)
        return each, Constants(mu, largest, chi1 / each)

    def models(self, state: RunState) -> Mapping[int, Params]:
        like = _sorted(state.params)
        nodes = sorted((int(c), x) for c, x in state.of(OWNER).items())
        return {c: _params(six_6D[X], like) for c, six_6D in nodes}

    def round(
        self, star: Star, state: RunState, on_outcome: Hook | None
    ) -> tuple[RunState, RoundReport]:
        began = clock.perf_counter()
        number, like = state.round + 1, _sorted(state.params)
        nodes = len(star.transport.members())
        edges = self.graph.edges(nodes, star.key)
        each, constants = self.rates(nodes, edges)
        held = [state.of(OWNER).get(str(c)) for c in range(nodes)]
        first = trees.flatten(like).double()
        six = [_rows({X: first, X_: first}) if x is None else x for x in held]
        since, rate = [0.0] * nodes, nodes + each * len(edges)
        asked: dict[int, list[Update]] = {}
        lost: list[Lost] = []
        now, sent, spent, key = 0.0, 0, 0.0, star.key.fold("dadao", number)

        def at(node: int) -> Tensor:
            """A node's vectors at this moment."""
            flowed = constants.flow(now - since[node]) @ six[node]
            since[node] = now
            return flowed

        for event in range(1 << 30):
            waits, which = key.uniform((2,), 2 * event).double().tolist()
            now -= math.log1p(-waits) / rate
            if now >= self.time:
                break
            place = which * rate
            if place < nodes:
                node = int(place)
                six[node] = at(node)
                started = clock.perf_counter()
                outcome = self._gradient(star, number, node, _params(six[node][X], like))
                spent += clock.perf_counter() - started
                if isinstance(outcome, Lost):
                    lost.append(replace(outcome, bytes_down=0))
                else:
                    asked.setdefault(node, []).append(outcome)
                    g_D = trees.flatten(_sorted(outcome.grad or {})).double()
                    six[node] = constants.moved(six[node], g_D + self.ridge * six[node][X])
                continue
            i, j = edges[min(int((place - nodes) / each), len(edges) - 1)]
            six[i], six[j] = constants.exchanged(at(i), at(j))
            sent += 2 * 8 * six[i].shape[1]  # Y + Z, both ways, float64
        now = self.time
        six = [at(node) for node in range(nodes)]
        mean_D = torch.stack([x[X] for x in six]).mean(0)
        apart = max(float((x[X] - mean_D).norm()) for x in six)
        states = {**state.states, OWNER: {str(c): x for c, x in enumerate(six)}}
        after = RunState(number, trees.pick(_params(mean_D, like), state.params), states)
        updates = tuple(_together(some) for _, some in sorted(asked.items()))
        if on_outcome:
            for update in updates:
                on_outcome(Reply(number, update.client, b"", 0))
        struck = tuple(x for x in {x.client: x for x in lost}.values() if x.client not in asked)
        seconds = {"plan": 0.0, "clients": spent, "aggregate": clock.perf_counter() - began - spent}
        numbers = {
            "disagreement": apart,
            "gradients": float(sum(map(len, asked.values()))),
            "messages": float(sent // (8 * max(1, len(first)))),
        }
        cohort = tuple(sorted([*asked, *(x.client for x in struck)]))
        return after, RoundReport(
            number, cohort, updates, struck, sent, sent, seconds, metrics=numbers
        )

    def _gradient(self, star: Star, number: int, node: int, at: Params) -> Update | Lost:
        """The gradient of a node's loss over all its rows (a plain step of rate 1)."""
        names = tuple(n for unit in star.units for n in unit.params)
        order = Order(star.key.value, number, node, names, at)
        (outcome,) = star.transport.exchange([order], None)
        if isinstance(outcome, Lost):
            return outcome
        try:
            update = star.server.receive(order, outcome.payload)
        except ProtocolError as error:
            return Lost(number, node, "error", str(error))
        if not update.n_examples or not trees.all_finite(update.grad or {}):
            return Lost(number, node, "error", "it has no finite gradient")
        return update


def _sorted(params: Params) -> Params:
    return {n: params[n] for n in sorted(params)}


def _params(x_D: Tensor, like: Params) -> Params:
    return {n: x.to(like[n]) for n, x in trees.unflatten(x_D, like).items()}


def _together(updates: list[Update]) -> Update:
    """The last of a node's answers in a round, with the work of all."""
    last = updates[-1]
    work: dict[str, float] = {
        n: math.fsum(u.metrics.get(n, 0.0) for u in updates)
        for n in ("steps", "skipped", "forwards")
        if n in last.metrics
    }
    # the first one's memory was measured
    return replace(last, metrics={**updates[0].metrics, **last.metrics, **work})
