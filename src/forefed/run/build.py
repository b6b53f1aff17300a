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
from forefed.local import TaskView, Trainer, replay
from forefed.models.load import load_task, load_tokenizer
from forefed.models.task import Task
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

    def start(self) -> RunState:
        return RunState(0, self.task.params)

    def majority(self) -> float | None:
        """Accuracy of always answering the test set's most frequent class."""
        if self.task.causal:
            return None
        labels = self.data.test.labels
        return float(np.bincount(labels).max() / len(labels))


def build(config: Config, say: Callable[[str], None] = lambda _: None) -> Federation:
    """Load and connect everything.

    Args:
        say: told what is being loaded, for progress.

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
    view = TaskView(task.loss, task.loss_recomputed, task.head)
    trainer = Trainer(config.client, config.engine, config.codec, view, tuple(config.transforms))
    transport = InProcess(
        population.size,
        population.client,
        _measured(trainer),
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
        lambda reply, order: receive(trainer, reply, order),
        config.rule,
        config.server,
        config.transforms,
        config.deadline_s,
        _server_rate(config),
    )
    return Federation(config, task, data, star, trainer, transport)


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
    """The server's half of a reply: decode, and replay what came as slopes."""
    return replay(trainer, order, trainer.codec.decode(reply.payload, order))


def _measured(
    trainer: Trainer,
) -> Callable[[Order, ClientData, ClientState], tuple[Update, ClientState]]:
    """The trainer, with the first step's peak memory measured once per round."""
    measured_rounds: set[int] = set()

    def client(order: Order, data: ClientData, state: ClientState) -> tuple[Update, ClientState]:
        first = order.round not in measured_rounds and len(data.train) > 0
        if first:
            measured_rounds.add(order.round)
        return replace(trainer, measure=first)(order, data, state)

    return client
