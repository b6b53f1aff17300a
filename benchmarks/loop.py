"""What the star loop costs beside the clients' own work, on clients that do nothing.

Target: below 50 microseconds a client without encoding, below 150 with it; and a population of a
million costs what a thousand costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from benchmarks.table import markdown
from forefed.assign import Contiguous
from forefed.config.config import Config
from forefed.core.keys import Secret
from forefed.core.types import Lost, Order, Params, Reply, Unit, Update
from forefed.data.examples import ClientData, Examples
from forefed.federation.inprocess import ClientStore
from forefed.federation.replica import Replica
from forefed.federation.server import Server
from forefed.federation.star import RunState, Star
from forefed.gradients.backprop import Backprop
from forefed.local import TaskView, Trainer
from forefed.optimisers import Sgd
from forefed.run.assemble import assemble
from forefed.run.simulate import OwnLoss, OwnModel
from forefed.wire import Dense

UNITS = [Unit(f"u{i}", (f"u{i}",), i, 16) for i in range(4)]
PARAMS: Params = {u.name: torch.zeros(16) for u in UNITS}
CHANGE = torch.ones(16)
_EMPTY = np.zeros(0, dtype=np.int64)
_EXAMPLES = Examples(_EMPTY.astype(np.int32), None, np.zeros(1, dtype=np.int64), _EMPTY, _EMPTY, 0)
NOTHING = ClientData(_EXAMPLES, _EMPTY, _EMPTY)


@dataclass(frozen=True)
class Nothing(Trainer):
    """A trainer whose steps cost nothing."""

    def __call__(
        self, order: Order, data: ClientData, state: Params, secret: Secret | None = None
    ) -> tuple[Update, Params]:
        return Update(order.client, 1, {name: CHANGE for name in order.assigned}, None, {}), {}


@dataclass(frozen=True)
class NoWire:
    """A transport that hands updates over as they are: the loop alone."""

    population: int
    client: Nothing
    updates: dict[int, Update] = field(default_factory=dict)
    store: ClientStore = field(default_factory=ClientStore)
    replica: Replica | None = None

    def members(self) -> range:
        return range(self.population)

    def exchange(
        self, orders: Iterable[Order], deadline_s: float | None, enough: Callable[[], bool]
    ) -> Iterator[Reply | Lost]:
        for order in orders:
            self.updates[order.client], _ = self.client(order, NOTHING, {})
            yield Reply(order.round, order.client, b"", 0)

    def tell(self, *asked: object) -> Iterator[Reply | Lost]:
        raise AssertionError("nobody is asked anything")


@dataclass(frozen=True)
class Direct(Server):
    """Takes updates as they are."""

    updates: dict[int, Update] = field(default_factory=dict)

    def receive(self, order: Order, payload: bytes) -> Update:
        return self.updates[order.client]


def star(cohort: int, population: int, wire: bool) -> Star:
    """The loop as a run has it, but for what its clients do."""
    config = Config(
        seed=1,
        cohort=cohort,
        assign=Contiguous(rotate=True),
        codec=Dense(),
        engine=Backprop(),
        server=Sgd(),
    )
    model = OwnModel(PARAMS, tuple(UNITS), frozenset())
    nothing = OwnLoss(lambda p, rows: torch.zeros(()))
    view = TaskView(nothing, nothing, model.head, None, model.units, PARAMS)
    client = Nothing(config.client, config.engine, config.codec, view)
    plain = None if wire else NoWire(population, client)
    loop, _ = assemble(
        *(config, model, lambda _: client, population, lambda _: NOTHING, Secret.rehearsed(1)),
        transport=plain,
        measure=False,
    )
    return (
        loop
        if plain is None
        else replace(loop, server=Direct(**vars(loop.server), updates=plain.updates))
    )


def microseconds(cohort: int, population: int, wire: bool) -> float:
    """Least time per client over some rounds (overheads are bounded from below by their best)."""
    loop, state = star(cohort, population, wire), RunState(0, PARAMS)
    best = float("inf")
    for _ in range(max(5, 2000 // cohort)):
        start = time.perf_counter()
        state, _ = loop.round(state)
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / cohort


def tables() -> Iterator[tuple[str, str]]:
    rows = []
    for cohort in (10, 100, 1000):
        plain = microseconds(cohort, 1000, wire=False)
        wired = microseconds(cohort, 1000, wire=True)
        rows.append((cohort, f"{plain:.0f}", f"{wired:.0f}"))
    header = ("clients per round", "loop alone, µs per client", "with encoding and decoding")
    yield "Overhead of the loop", markdown(header, rows)
    small = microseconds(100, 1000, wire=True)
    large = microseconds(100, 1_000_000, wire=True)
    rows = [(f"{n:,}", f"{x:.0f}", f"{x / small:.2f}") for n, x in ((1000, small), (10**6, large))]
    yield (
        "Population against cost (100 clients per round)",
        markdown(("population", "µs per client", "ratio"), rows),
    )
