"""From a configuration to a federation: model, data, clients and the slots of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import LOSS_REASONS, ClientState, Order, Reply, Update
from forefed.data.examples import ClientData
from forefed.data.prepare import Prepared, prepare
from forefed.gradients import GradientEngine
from forefed.local import TaskView, Trainer, replay
from forefed.models.load import load_task, load_tokenizer
from forefed.models.prefix import FrozenPrefix, PrefixCache
from forefed.models.shell import check_length
from forefed.models.task import Task
from forefed.run.budgets import Engines, Planner, measure_now, resolve, variance_of
from forefed.run.compat import check
from forefed.run.config import Config
from forefed.run.inprocess import ClientStore, InProcess
from forefed.run.star import RunState, Star


@dataclass(frozen=True)
class Federation:
    """Everything a run needs, built and checked."""

    config: Config
    task: Task
    data: Prepared
    star: Star
    trainer: Trainer
    transport: InProcess
    engines: Engines

    def start(self) -> RunState:
        return RunState(0, self.task.params)

    def majority(self) -> float | None:
        """Accuracy of always answering the test set's most frequent class."""
        if self.task.causal:
            return None
        labels = self.data.test.labels
        return float(np.bincount(labels).max() / len(labels))


def build(
    config: Config, say: Callable[[str], None] = lambda _: None, planner: Planner = measure_now
) -> Federation:
    """Load and connect everything.

    Args:
        say: told what is being loaded, for progress.
        planner: what chooses engines for ``engine.kind = "auto"``.

    Raises:
        UserError: anything that cannot work, before any training.
    """
    check(config)
    key = Key(config.seed)
    say("reading and tokenising texts")
    tokenizer = load_tokenizer(config.model)
    data = prepare(
        config.data, config.partition, tokenizer, key.fold("data"), config.out / ".cache"
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
    prefix = _prefix(config, task, engines.spare)
    view = TaskView(task.loss, task.loss_recomputed, task.head, prefix)
    trainer = Trainer(config.client, engines.of(0), config.codec, view, tuple(config.transforms))

    def trainer_of(client: int) -> Trainer:
        return replace(trainer, engine=engines.of(client))

    transport = InProcess(
        population.size,
        population.client,
        _measured(trainer_of),
        config.codec.encode,
        ClientStore(),
        {reason: getattr(config.faults, reason) for reason in LOSS_REASONS},
    )
    star = Star(
        key,
        task.units,
        task.head,
        config.cohort,
        config.assign,
        transport,
        lambda reply, order: receive(trainer_of(order.client), reply, order),
        config.rule,
        config.server,
        config.transforms,
        config.deadline_s,
        _server_rate(config),
    )
    return Federation(config, task, data, star, trainer, transport, engines)


def _prefix(config: Config, task: Task, spare: int | None) -> FrozenPrefix | None:
    """The prefix cache; in memory, it takes no more than every client's budget leaves."""
    kind, limit = config.client.prefix_cache, config.client.prefix_cache_limit
    if kind == "off":
        return None
    if kind == "disk":
        return FrozenPrefix(task, PrefixCache(limit, config.out / ".cache"))
    return FrozenPrefix(task, PrefixCache(limit if spare is None else min(limit, spare)))


def _server_rate(config: Config) -> Callable[[int], float]:
    if config.server_schedule == "constant":
        return lambda _: 1.0
    return lambda number: 1 - (number - 1) / config.rounds


def load_model(config: Config, label_names: Sequence[str]) -> Task:
    """The run's model with its adapter, at its first values."""
    causal = config.data.task.head == "causal_lm"
    key = Key(config.seed).fold("model")
    return load_task(config.model, config.adapter, key, None if causal else label_names)[0]


def receive(trainer: Trainer, reply: Reply, order: Order) -> Update:
    """The server's half of a reply: decode, replay what came as slopes, and say how noisy it is."""
    update = replay(trainer, order, trainer.codec.decode(reply.payload, order))
    return replace(
        update, variance=variance_of(trainer.engine, trainer.codec, order, trainer.task.head)
    )


def _measured(
    trainer_of: Callable[[int], Trainer],
) -> Callable[[Order, ClientData, ClientState], tuple[Update, ClientState]]:
    """The trainer, with the first step's peak memory measured once per round and engine."""
    measured: set[tuple[int, GradientEngine]] = set()

    def client(order: Order, data: ClientData, state: ClientState) -> tuple[Update, ClientState]:
        trainer = trainer_of(order.client)
        first = (order.round, trainer.engine) not in measured and len(data.train) > 0
        if first:
            measured.add((order.round, trainer.engine))
        return replace(trainer, measure=first)(order, data, state)

    return client
