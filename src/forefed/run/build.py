"""From a configuration to a federation: model, data, clients and the slots of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from forefed.attacks import Hostile
from forefed.config.compat import check
from forefed.config.config import Config
from forefed.config.privacy import check_units
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.files import kept_secret
from forefed.core.keys import Key, Secret
from forefed.core.types import (
    LOSS_REASONS,
    ClientState,
    Order,
    Params,
    Transport,
    Unit,
    Update,
)
from forefed.data.examples import ClientData
from forefed.data.prepare import Prepared, prepare
from forefed.federation.adversary import Adversary
from forefed.federation.exchange import check_groups
from forefed.federation.inprocess import ClientFn, ClientStore, InProcess
from forefed.federation.pool import PooledServer, pooled_groups
from forefed.federation.replica import Replica
from forefed.federation.server import Layout, Server
from forefed.federation.star import RunState, Star
from forefed.gradients import GradientEngine
from forefed.local import TaskView, Trainer
from forefed.local.groups import groups_of
from forefed.local.party import Answering, Party, shapes_of
from forefed.models.inspect import look
from forefed.models.load import check_files, load_task
from forefed.models.pooling import choose
from forefed.models.prefix import FrozenPrefix, weights_before
from forefed.models.prefix_cache import PrefixCache
from forefed.models.shell import check_length
from forefed.models.task import Task
from forefed.plan import Way
from forefed.run.budgets import Engines, Planner, measure_now, resolve
from forefed.run.record import ENVIRONMENT, read_json
from forefed.start import ClosedForm, one_text, start_of, words_of
from forefed.start.answer import Answers


class Model(Protocol):
    """What the loop needs to know of what is trained: a ``Task``, or a caller's own parameters."""

    @property
    def params(self) -> Params:
        """The first values, by name."""

    @property
    def units(self) -> tuple[Unit, ...]: ...

    @property
    def head(self) -> frozenset[str]: ...


class Carrier(Transport, Protocol):
    """A transport, and what of its clients a checkpoint keeps (of real sites nothing)."""

    @property
    def store(self) -> ClientStore: ...

    @property
    def replica(self) -> Replica | None: ...


Connect = Callable[[Config, Task], Carrier]
"""Makes the transport of a run between machines."""


@dataclass(frozen=True)
class Federation:
    """Everything a run needs, built and checked."""

    config: Config
    task: Task
    data: Prepared
    star: Star
    trainer: Trainer
    transport: Carrier
    engines: Engines
    prefix: FrozenPrefix | None = None
    """What the server need not compute again when it tests."""

    def start(self) -> RunState:
        return RunState(0, self.task.params)

    @property
    def emulated(self) -> bool:
        """Are slopes found by backward passes, so that seconds are not the engine's own?"""
        return self.trainer.engine.stands_for is not self.trainer.engine

    @property
    def in_rehearsal(self) -> bool:
        """Do all parties live in this process, so that their secrets follow from the seed?"""
        return self.config.partition.kind != "sites"

    @property
    def secrecy(self) -> str:
        """Where the secrets of this run come from, as the record says it."""
        return "derived from the seed (rehearsal)" if self.in_rehearsal else "system"

    def majority(self) -> float | None:
        """Quality of always answering what the training rows say most often, or nothing."""
        train = self.data.population.examples
        return self.task.objective.constant(train, self.data.test)


def build(
    config: Config,
    say: Callable[[str], None] = lambda _: None,
    planner: Planner = measure_now,
    connect: Connect | None = None,
) -> Federation:
    """Load and connect everything.

    Args:
        say: told what is being loaded, for progress.
        planner: what chooses engines for ``engine.kind = "auto"``.
        connect: what leads to the clients of a deployment; None: all clients are in this process.

    Raises:
        UserError: anything that cannot work, before any training.
    """
    check(config, deployed=connect is not None)
    key = Key(config.seed)
    say("looking at the model's files")
    tokenizer = check_files(config.model, config.data.task.head)
    say("reading and tokenising texts")
    data = prepare(
        config.data,
        config.partition,
        tokenizer,
        key.fold("data"),
        config.out / ".cache",
        whole_length(config, tokenizer),
    )
    population = data.population
    if config.cohort > population.size:
        raise UserError(
            f"cohort = {config.cohort} is larger than the population ({population.size} clients); "
            "lower the cohort, or change the partition"
        )
    say("loading the model")
    task = load_model(config, data.label_names)
    longest = int(data.population.examples.lengths().max())
    check_length(task.model.config, longest, "data.max_length")
    engines = resolve(config, task.units, data, planner, say)
    trainer = make_trainer(config, task_view(config, task, engines.spare), engines.of(0))
    trainer_of = trainers(trainer, engines)
    transport = connect(config, task) if connect is not None else None
    secret = Secret.rehearsed(config.seed) if connect is None else kept_secret(config.folder)
    prefix = _prefix(config, task, None)
    answering = answers(config, task, prefix)
    star, transport = assemble(
        config,
        task,
        trainer_of,
        population.size,
        population.client,
        secret,
        transport,
        answers=answering,
        frozen=frozen_head(config, task),
    )
    return Federation(config, task, data, star, trainer, transport, engines, prefix)


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
) -> tuple[Star, Carrier]:
    """The loop over a model and its clients; without a transport they are all in this process.

    Args:
        secret: from which that of the server and of clients in this process derive.
        measure: record the peak memory of a step, which costs a tenth of a second a round.
        answers: how clients answer questions beside training.
        frozen: parameters that nobody trains.

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
    channel, cohort = config.channel, min(config.cohort, population)
    if channel.sums:
        check_groups(channel, config.assign.names(units, cohort, Key(config.seed)))
    if transport is None:
        attack, who = config.attack, frozenset[int]()
        if isinstance(attack, Hostile):
            who = hostile_among(attack, population, config.seed)
        inside = InProcess(
            population,
            lambda c: attack.data_of(c, lookup, who, Key(config.seed)) if c in who else lookup(c),
            measured(trainer_of) if measure else unmeasured(trainer_of),
            Party(trainer_of, channel, answers),
            ClientStore(),
            {reason: getattr(config.faults, reason) for reason in LOSS_REASONS},
            _replica(config, model, server),
            secret.fold("clients"),
            config.seed,
        )
        transport = inside
        if isinstance(attack, Hostile):
            transport = Adversary(
                inside,
                attack,
                who,
                config.codec,
                config.aggregator,
                model.units,
                model.params,
                config.seed,
            )
    star = Star(
        Key(config.seed),
        units,
        config.cohort,
        config.assign,
        transport,
        server,
        config.deadline_s,
        config.codec.sends_slopes,
        config.download.by_records,
        config.cohort_min,
        config.oversampling,
        config.sharing,
        config.topology,
        config.select,
        channel,
        lambda order: shapes_of(trainer_of(order.client), order),
        config.codec,
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


def start_at(config: Config, task: Task) -> ClosedForm | None:
    """How the head is solved before round 1; None: it is not."""
    return start_of(config, getattr(task.model.get_base_model(), "pooling", "pooler"))


Columns = Mapping[str, list[str]]
"""The columns that were read, by the setting that names them."""


def words_at(config: Config, columns: Columns | None = None) -> int:
    """How many words count beside the features of the head; 0: none.

    Args:
        columns: by which a task that guesses them is known to have one text a row, or two.
    """
    if not isinstance(config.start, ClosedForm) or not one_text(config.data.task):
        return 0
    if columns is not None and len(config.data.task.asked(dict(columns))) > 1:
        return 0
    return words_of(config, choose(config.model, look(config.model)))


def whole_length(config: Config, tokenizer: Any, columns: Columns | None = None) -> int | None:
    """Tokens that are kept of a text for its words; None: no words count. ``columns``: as for
    ``words_at``."""
    if not words_at(config, columns):
        return None
    assert isinstance(config.start, ClosedForm)
    return int(min(config.start.words_length, tokenizer.model_max_length))


def frozen_head(config: Config, task: Task) -> frozenset[str]:
    """The head's parameters, where they stay as the start has solved them."""
    start = start_at(config, task)
    return task.head if start is not None and start.then == "frozen" else frozenset()


def answers(config: Config, task: Task, prefix: FrozenPrefix | None) -> Answers:
    """How a client of this run answers questions."""
    around = None if prefix is None else prefix.evaluation
    start = start_at(config, task)
    if start is None:
        return Answers(task, around=around)
    radius = start.radius if start.private else None
    return Answers(task, start.batch_size, start.min_count, around, radius, start.max_rows)


def task_view(config: Config, task: Task, spare: int | None) -> TaskView:
    """What training needs of a task. ``spare``: bytes that a client's budget leaves beside it
    (None: no budget)."""
    prefix = _prefix(config, task, spare)
    return TaskView(
        task.loss,
        task.loss_recomputed,
        task.head,
        prefix,
        task.units,
        task.params,
        task.n_labels,
        task.loss_structured,
    )


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
    slots: dict[str, Any] = {
        "key": Key(config.seed),
        "head": model.head,
        "aggregator": config.aggregator,
        "optimiser": config.server,
        "modifiers": config.modifiers,
        "units": model.units,
        "rounds": config.rounds,
        "trigger": config.trigger,
        "trainer_of": trainer_of,
        "averages_slopes": config.codec.sends_slopes and config.directions.shared,
    }
    if not config.download.by_sums:
        return Server(**slots)
    return PooledServer(
        **slots,
        first=model.params,
        groups=pooled_groups(trainer_of(0), config.seed, model.params),
        steps=config.client.optimiser,
    )


def _replica(config: Config, model: Model, server: Server) -> Replica | None:
    """What the clients keep; with a pool of directions they begin with the run's first values."""
    if not config.download.by_records:
        return None
    return Replica(server, RunState(0, model.params) if config.download.by_sums else None)


def _prefix(config: Config, task: Task, spare: int | None) -> FrozenPrefix | None:
    """The prefix cache; in memory, it takes no more than every client's budget leaves."""
    kind, limit = config.client.prefix_cache, config.client.prefix_cache_limit
    if kind == "off":
        return None
    if kind != "ram":
        kept = partial(weights_before, task) if kind == "kept" else lambda depth: None
        return FrozenPrefix(task, PrefixCache(limit, config.out / ".cache", kept))
    return FrozenPrefix(task, PrefixCache(limit if spare is None else min(limit, spare)))


def load_model(config: Config, label_names: Sequence[str]) -> Task:
    """The run's model with its adapter, at its first values; its attention as the run began."""
    key, settings = Key(config.seed).fold("model"), config.model
    if settings.attention == "auto" and (config.folder / ENVIRONMENT).exists():
        # measured when the run began (in records of former versions: not at all)
        began = read_json(config.folder / ENVIRONMENT).get("model", {})
        settings = settings.model_copy(update={"attention": began.get("attention", "weights")})
    return load_task(settings, config.adapter, key, label_names, config.data.task.head)[0]


def unmeasured(trainer_of: Callable[[int], Trainer]) -> ClientFn:
    """Every client's own trainer."""
    return lambda order, data, state, secret: trainer_of(order.client)(order, data, state, secret)


def measured(trainer_of: Callable[[int], Trainer]) -> ClientFn:
    """The trainer, with the first step's peak memory measured once per round and engine."""
    measured: set[tuple[int, GradientEngine]] = set()

    def client(
        order: Order, data: ClientData, state: ClientState, secret: Secret | None
    ) -> tuple[Update, ClientState]:
        trainer = trainer_of(order.client)
        first = (order.round, trainer.engine) not in measured and len(data.train) > 0
        if first:
            measured.add((order.round, trainer.engine))
        return replace(trainer, measure=first)(order, data, state, secret)

    return client
