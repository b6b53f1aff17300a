"""From settings and what is trained to the loop: the slots, connected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch

from forefed.attacks import Hostile
from forefed.channel import PartialSums
from forefed.config.config import Config
from forefed.config.privacy import check_units
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key, Secret
from forefed.core.types import (
    LOSS_REASONS,
    ClientState,
    Order,
    Params,
    Unit,
    Update,
)
from forefed.data.examples import ClientData
from forefed.federation.adversary import Adversary
from forefed.federation.aggregators import Aggregators
from forefed.federation.exchange import check_groups
from forefed.federation.inprocess import Carrier, ClientFn, ClientStore, InProcess
from forefed.federation.replica import Replica
from forefed.federation.server import Layout, Server
from forefed.federation.star import RunState, Star
from forefed.gradients import GradientEngine
from forefed.local import TaskView, Trainer
from forefed.local.groups import groups_of
from forefed.local.party import Answering, Party, shapes_of
from forefed.plan import Way
from forefed.run.client_engines import Engines


class Model(Protocol):
    """What the loop needs to know of what is trained: a ``Task``, or a caller's own parameters."""

    @property
    def params(self) -> Params:
        """The first values, by name."""

    @property
    def units(self) -> tuple[Unit, ...]: ...

    @property
    def head(self) -> frozenset[str]: ...


def assemble(
    config: Config,
    model: Model,
    trainer_of: Callable[[int], Trainer],
    population: int,
    lookup: Callable[[int], ClientData],
    secret: Secret,
    transport: Carrier | None = None,
    measure: bool = True,
    answers: Answering | None = None,
    frozen: frozenset[str] = frozenset(),
    workers: int = 1,
) -> tuple[Star, Carrier]:
    """The loop over a model and its clients; without a transport they are all in this process.

    Args:
        secret: from which that of the server and of clients in this process derive.
        measure: record the peak memory of a step, which costs a tenth of a second a round.
        answers: how clients answer questions beside training.
        frozen: parameters that nobody trains.
        workers: processes that do the work of clients in this process.

    Raises:
        UserError: nothing would be private in a run that is to keep something so; a delta or a
            participation cap that the population does not allow; groups that are too small for a
            secure sum.
    """
    config.sharing.check(model.units, model.params)
    check_units(config, population)
    config.topology.check(population, Key(config.seed))
    server = make_server(config, model, trainer_of)
    units = [u for u in model.units if not frozen & set(u.params)]
    server = replace(
        server,
        secret=secret.fold("server"),
        modifiers=tuple(m.solved(config, population) for m in config.modifiers),
        layout=partial(layout_of, config, trainer_of(0), units),
    )
    download, channel, cohort = config.download, config.channel, min(config.cohort, population)
    if channel.sums:
        check_groups(channel, config.assign.names(units, cohort, Key(config.seed)))
    if transport is None:
        attack, who = config.attack, frozenset[int]()
        if isinstance(attack, Hostile):
            who = hostile_among(attack, population, config.seed)
        transport = inside = InProcess(
            population_size=population,
            lookup=lambda c: (
                attack.data_of(c, lookup, who, Key(config.seed)) if c in who else lookup(c)
            ),
            client=unmeasured(trainer_of),
            party=Party(trainer_of, channel, answers),
            store=ClientStore(),
            faults={reason: getattr(config.faults, reason) for reason in LOSS_REASONS},
            replica=Replica(server, download.held(model.params)) if download.by_records else None,
            secret=secret.fold("clients"),
            seed=config.seed,
            measuring=Measured(trainer_of) if measure else None,
            workers=workers,
        )
        if isinstance(channel, PartialSums) and channel.aggregators:
            transport = Aggregators(inside, channel.aggregators)
        if isinstance(attack, Hostile):
            transport = Adversary(
                inner=transport,
                attack=attack,
                who=who,
                codec=config.codec,
                aggregator=config.aggregator,
                units=model.units,
                first=model.params,
                seed=config.seed,
            )
    star = Star(
        key=Key(config.seed),
        units=units,
        cohort=config.cohort,
        assign=config.assign,
        transport=transport,
        server=server,
        deadline_s=config.deadline_s,
        records=config.codec.sends_slopes,
        by_records=download.by_records,
        cohort_min=config.cohort_min,
        oversampling=config.oversampling,
        sharing=config.sharing,
        topology=config.topology,
        select=config.select,
        channel=channel,
        shapes=lambda order: shapes_of(trainer_of(order.client), order),
        codec=config.codec,
    )
    return star, transport


def layout_of(config: Config, trainer: Trainer, units: Sequence[Unit], state: RunState) -> Layout:
    """The form of what is aggregated in the round after ``state``, where everybody trains all."""
    number = state.round + 1
    shared = config.sharing.split(units, number).shared
    names = tuple(n for u in units for n in u.params if n in shared)
    if not config.codec.sends_slopes:
        return Layout(names, {n: torch.zeros_like(state.params[n]) for n in names})
    steps = config.client.max_steps or 0
    order = Order(config.seed, number, 0, names, state.params)
    groups = groups_of(trainer.engine, trainer.codec, order, trainer.task.head, trainer.directions)
    blank = {
        g: torch.zeros(steps, group.directions.count(trees.pick(state.params, group.names)))
        for g, group in groups.items()
    }
    return Layout(names, blank)


def hostile_among(attack: Hostile, population: int, seed: int) -> frozenset[int]:
    """Who is hostile in a simulation.

    Raises:
        UserError: nobody, or everybody.
    """
    who = attack.who(population, Key(seed))
    if not 0 < len(who) < population:
        raise UserError(
            f"attack.hostile = {attack.hostile} is {len(who) or 'none'} of {population} clients; "
            "give a number or a share that leaves some on either side"
        )
    return who


def make_trainer(config: Config, view: TaskView, way: Way | None = None) -> Trainer:
    """A client's half of the run. ``way``: how it gets a gradient (None: as is configured)."""
    way = way or Way(engine=config.engine, directions=config.directions)
    return Trainer(
        config.client,
        way.engine,
        config.topology.trained_by(config.codec),
        view,
        tuple(m.solved(config, None) for m in config.modifiers),
        config.sharing,
        way.directions,
        rounds=config.rounds,
    )


def trainers(trainer: Trainer, engines: Engines) -> Callable[[int], Trainer]:
    """What each client computes with."""

    def of(client: int) -> Trainer:
        way = engines.of(client)
        return replace(trainer, engine=way.engine, directions=way.directions)

    return of


def make_server(config: Config, model: Model, trainer_of: Callable[[int], Trainer]) -> Server:
    """The server's half of the run, which a client that follows by records has, too."""
    plain = Server(
        key=Key(config.seed),
        head=model.head,
        aggregator=config.aggregator,
        optimiser=config.server,
        modifiers=config.modifiers,
        units=model.units,
        rounds=config.rounds,
        trigger=config.trigger,
        trainer_of=trainer_of,
        averages_slopes=config.codec.sends_slopes and config.directions.shared,
    )
    return config.download.server(plain, model.params)


def unmeasured(trainer_of: Callable[[int], Trainer]) -> ClientFn:
    """Every client's own trainer."""
    return lambda order, data, state, secret: trainer_of(order.client)(order, data, state, secret)


class Measured:
    """The first step's peak memory, once per round and engine (a ``Measuring``)."""

    def __init__(self, trainer_of: Callable[[int], Trainer]):
        self.trainer_of = trainer_of
        self.seen: set[tuple[int, GradientEngine]] = set()

    def due(self, order: Order, data: Callable[[], ClientData]) -> bool:
        engine = self.trainer_of(order.client).engine
        first = (order.round, engine) not in self.seen and len(data().train) > 0
        if first:
            self.seen.add((order.round, engine))
        return first

    @property
    def client(self) -> ClientFn:
        def work(
            order: Order, data: ClientData, state: ClientState, secret: Secret | None
        ) -> tuple[Update, ClientState]:
            trainer = replace(self.trainer_of(order.client), measure=True)
            return trainer(order, data, state, secret)

        return work


def measured(trainer_of: Callable[[int], Trainer]) -> ClientFn:
    """Every client's own trainer, measured where it is due."""
    measuring, plain = Measured(trainer_of), unmeasured(trainer_of)

    def client(
        order: Order, data: ClientData, state: ClientState, secret: Secret | None
    ) -> tuple[Update, ClientState]:
        work = measuring.client if measuring.due(order, lambda: data) else plain
        return work(order, data, state, secret)

    return client
