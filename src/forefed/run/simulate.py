"""A federation over any loss: the loop, clients and wire of a run, without a language model.

For authors of algorithms and for their tests: every slot works as in ``forefed run`` (the same
clients, bytes, server and randomness), the model is a function and the data are tensors.

    def loss(params, batch):                                     # the mean over the batch's rows
        return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()

    clients = [{"x": x_ND, "y": y_N} for x_ND, y_N in shares]
    result = forefed.simulate(loss, {"w": torch.zeros(5)}, clients, strategy="fedavg", rounds=10)
    result.params["w"], result.losses
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forefed.config.compat import check
from forefed.config.config import Config, configure
from forefed.core.errors import UserError
from forefed.core.keys import Key, Secret
from forefed.core.lora import is_folded
from forefed.core.texts import Texts
from forefed.core.types import Batch, LossFn, Lost, Params, Reply, Unit
from forefed.data.examples import ClientData, Examples, Indices
from forefed.federation.adversary import Adversary
from forefed.federation.inprocess import InProcess
from forefed.federation.report import RoundReport
from forefed.federation.star import RunState, Star
from forefed.gradients import GradientEngine
from forefed.local import TaskView
from forefed.plan import Way
from forefed.run.assemble import assemble, make_trainer

Rows = Mapping[str, Tensor]
"""A client's data: tensors by name, all with one row per example; a list of str is a column of
texts, which losses see as ``Texts``."""
Loss = Callable[[Params, Rows], Tensor]
"""(parameters, a batch's tensors) -> the mean loss of the batch, a scalar."""

OWN = frozenset(
    {"adapter", "data", "evaluate", "guard", "memory", "model", "name", "out", "partition", "start"}
)
"""Sections about models, texts and records, which a caller's own loss and clients stand for."""


@dataclass(frozen=True)
class Simulation:
    """What ``simulate`` returns: the state after the last round and what every round did."""

    config: Config
    star: Star
    state: RunState
    reports: tuple[RoundReport, ...]

    @property
    def params(self) -> Params:
        """The global parameters by name."""
        return self.state.params

    @property
    def head(self) -> frozenset[str]:
        """The parameters of the head."""
        return self.star.server.head

    def own(self, client: int) -> Params:
        """The model of one client: the global one, with what it keeps to itself; of a node without
        a server, its own."""
        transport = self.star.transport
        assert isinstance(transport, InProcess | Adversary), "all clients are in this process"
        node = self.config.topology.models(self.state).get(client)
        kept = transport.store.private(client)
        return node or {**self.params, **self.config.sharing.own(self.params, kept, self.head)}

    @property
    def losses(self) -> list[float]:
        """The clients' mean training loss of every round, by example (NaN: nobody answered)."""
        return [report.loss for report in self.reports]


@dataclass(frozen=True)
class OwnModel:
    """A caller's parameters as the loop sees a model (``forefed.run.build.Model``)."""

    params: Params
    units: tuple[Unit, ...]
    head: frozenset[str]


@dataclass(frozen=True)
class OwnLoss:
    """A caller's loss as the engines call it (``LossFn``)."""

    loss: Loss

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        return self.loss(params, batch.inputs)

    def weight(self, batch: Batch) -> int:
        return batch.size


@dataclass(frozen=True)
class TensorRows:
    """A client's tensors as the local loop reads them."""

    tensors: Rows
    count: int

    def __len__(self) -> int:
        return self.count

    def lengths(self) -> NDArray[np.int64]:
        return np.ones(self.count, dtype=np.int64)

    def batch(self, indices: Sequence[int] | Indices, dropout: Key | None = None) -> Batch:
        chosen = torch.as_tensor(np.asarray(indices))
        inputs = {name: x[chosen] for name, x in self.tensors.items()}
        return Batch(inputs, labels=chosen, dropout=dropout)


def simulate(
    loss: Loss | LossFn,
    params: Params,
    clients: Sequence[Rows | ClientData],
    *,
    strategy: str = "fedavg",
    rounds: int = 10,
    cohort: int | None = None,
    seed: int = 0,
    units: Sequence[Unit | Sequence[str]] | None = None,
    head: Collection[str] = (),
    state: RunState | None = None,
    on_round: Callable[[RunState, RoundReport], None] | None = None,
    on_outcome: Callable[[Reply | Lost], None] | None = None,
    **settings: Any,
) -> Simulation:
    """Run a federation over a loss of your own, in this process.

    Args:
        loss: (parameters, batch) -> mean loss of a batch, a scalar tensor. ``batch`` holds the
            client's tensors at the batch's rows. Forward-mode engines run it on dual tensors, so it
            should use torch's functions and no ``.item()``. A model that is only a function, or
            stands behind an address: ``forefed.BlackBox``.
        params: first values by name.
        clients: one mapping of tensors [rows, ...] (or lists of texts) per client.
        strategy: whose settings to start from (``forefed list strategies``).
        rounds: how many.
        cohort: clients per round (None: all).
        seed: draws cohorts, batches and directions.
        units: what is trained together, as names of parameters; every parameter in one of them, in
            the order in which the loss uses them (None: every parameter by itself).
        head: parameters that a client gets exactly whatever the engine, as the last unit.
        state: go on from that of an earlier simulation.
        on_round: called after every round; it may raise to stop.
        on_outcome: called for every answer.
        settings: any other section or setting of the configuration, as a table, a kind or an object
            (``codec="scalars"``, ``client={"epochs": 2}``, ``server=Adam(lr=0.1)``).

    Returns:
        Final parameters, the state to go on from, and every round's report.

    Raises:
        UserError: settings that cannot work together, or clients and units that do not fit.
    """
    if not clients or not params:
        raise UserError("simulate needs at least one client and one parameter")
    about = {"strategy": strategy, "rounds": rounds, "seed": seed}
    config = configured(len(clients), cohort, {**about, **settings})
    check(config)
    reading = [m.kind for m in config.modifiers if m.reads_batches]
    if reading:
        raise UserError(
            f"modifiers: '{reading[0]}' adds to the logits of a model with classes, and simulate "
            "has a loss of its own; add it there, and drop the modifier"
        )
    star = star_over(config, loss, params, clients, units, head)
    return went(config, star, state or RunState(0, params), on_round, on_outcome)


def configured(clients: int, cohort: int | None, settings: Mapping[str, Any]) -> Config:
    """The configuration of a simulation among so many clients of the caller's.

    Raises:
        UserError: a section about what the caller brings, or settings that do not fit.
    """
    told = sorted(OWN & settings.keys())
    if told:
        raise UserError(
            f"{told[0]}: simulate has a loss, parameters and clients of its own; leave it out"
        )
    base = {"cohort": clients if cohort is None else cohort, **settings}
    iid = {"kind": "iid", "clients": clients}
    return configure(base={**base, "partition": iid, "start": "none", "guard": "none"})


def went(
    config: Config,
    star: Star,
    state: RunState,
    on_round: Callable[[RunState, RoundReport], None] | None,
    on_outcome: Callable[[Reply | Lost], None] | None,
) -> Simulation:
    """``config.rounds`` rounds from this state."""
    reports = []
    for _ in range(config.rounds):
        state, report = star.round(state, on_outcome)
        reports.append(report)
        if on_round is not None:
            on_round(state, report)
    return Simulation(config, star, state, tuple(reports))


def star_over(
    config: Config,
    loss: Loss | LossFn,
    params: Params,
    clients: Sequence[Rows | ClientData],
    units: Sequence[Unit | Sequence[str]] | None = None,
    head: Collection[str] = (),
) -> Star:
    """The loop that ``simulate`` runs, for callers that go through it round by round."""
    model = OwnModel(params, tuple(units_of(params, units, frozenset(head))), frozenset(head))
    whole = cast(LossFn, loss) if hasattr(loss, "weight") else OwnLoss(loss)
    values_only = getattr(loss, "values_only", False)
    engine = config.engine.among(not values_only, config.directions)
    if values_only:
        engine = _by_values(engine, model.head)
    trainer = make_trainer(
        config,
        TaskView(whole, whole, model.head, None, model.units, params),
        Way(engine=engine, directions=config.directions),
    )
    shares = [_share(i, rows) for i, rows in enumerate(clients)]
    secret = Secret.rehearsed(config.seed)
    star, _ = assemble(
        config, model, lambda _: trainer, len(shares), shares.__getitem__, secret, measure=False
    )
    return star


def _by_values(engine: GradientEngine, head: frozenset[str]) -> GradientEngine:
    """The engine for a loss that has values alone; it sees whole batches, as calls cost.

    Raises:
        UserError: one that wants a derivative.
    """
    if not engine.by_values:
        raise UserError(
            f"engine.kind = '{engine.kind}' differentiates the loss, and a black box gives values "
            "alone; set engine = 'finite_difference' (or strategy = 'fedmezo', 'fzoos', ...)"
        )
    if getattr(engine, "emulates", False):
        raise UserError(
            "engine.emulate takes the slopes from a backward pass, which a black box does not "
            "have; set engine = {'kind': 'finite_difference', 'emulate': False}"
        )
    if head and getattr(engine, "head", "perturbed") == "exact":
        raise UserError(
            "head: it gets an exact gradient, which a black box does not have; set "
            "engine = {'kind': 'finite_difference', 'head': 'perturbed'}, or leave head out"
        )
    auto = engine.micro_batch == "auto"
    return engine.model_copy(update={"micro_batch": None}) if auto else engine


def _share(client: int, rows: Rows | ClientData) -> ClientData:
    if isinstance(rows, ClientData):
        return rows
    counts = {len(x) for x in rows.values()}
    if len(counts) != 1:
        raise UserError(
            f"client {client}: its tensors have {sorted(counts) or 'no'} rows; give tensors with "
            "one row per example each"
        )
    (count,) = counts
    columns = {n: x if isinstance(x, Tensor) else _texts(client, n, x) for n, x in rows.items()}
    # the local loop asks for batches and lengths, and both kinds of rows have them
    examples = cast(Examples, TensorRows(columns, count))
    return ClientData(examples, np.arange(count), np.zeros(0, dtype=np.int64))


def _texts(client: int, name: str, column: object) -> Tensor:
    if isinstance(column, list | tuple) and all(isinstance(x, str) for x in column):
        return cast(Tensor, Texts(tuple(column)))  # losses alone look into what they are given
    raise UserError(f"client {client}: column '{name}' is neither a tensor nor a list of texts")


def units_of(
    params: Params, units: Sequence[Unit | Sequence[str]] | None, head: frozenset[str]
) -> Iterator[Unit]:
    """Units in the order of use, the head last.

    Raises:
        UserError: a parameter in none or in two, or a name that is none.
    """
    params = {n: x for n, x in params.items() if not is_folded(n)}  # which aggregators write
    body = [n for n in params if n not in head]
    given: list[Unit | Sequence[str]] = [(n,) for n in body] if units is None else list(units)
    if units is None and head:
        given.append(tuple(n for n in params if n in head))
    names = [n for u in given for n in (u.params if isinstance(u, Unit) else u)]
    if sorted(names) != sorted(params) or head - params.keys():
        wrong = sorted(set(names) ^ params.keys() | head - params.keys()) or sorted(
            {n for n in names if names.count(n) > 1}
        )
        raise UserError(f"units: every parameter belongs to exactly one; look at {wrong}")
    for depth, unit in enumerate(given):
        if isinstance(unit, Unit):
            yield unit
            continue
        size = sum(params[n].numel() for n in unit)
        yield Unit(unit[0], tuple(unit), depth, size, is_head=bool(head & set(unit)))
