"""From a configuration to a federation: model, data, clients and the slots of the loop."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from forefed.config.compat import check, check_population
from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.kept import kept_secret
from forefed.core.keys import Key, Secret
from forefed.data.prepare import Prepared, prepare
from forefed.federation.folds import Groups, groups_of
from forefed.federation.inprocess import Carrier
from forefed.federation.star import RunState, Star
from forefed.local import TaskView, Trainer
from forefed.models.inspect import look
from forefed.models.load import check_files, load_task
from forefed.models.pooling import choose
from forefed.models.prefix import FrozenPrefix, weights_before
from forefed.models.prefix_cache import PrefixCache
from forefed.models.shell import check_length
from forefed.models.task import Task
from forefed.run.assemble import assemble, make_trainer, trainers
from forefed.run.client_engines import Engines, Planner, measure_now, resolve
from forefed.run.record import ENVIRONMENT, read_json
from forefed.start import ClosedForm, one_text, start_of, words_of
from forefed.start.answer import Answers
from forefed.start.closed_form import folds_of
from forefed.start.shares import Shares

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
    check_population(config, population.size)
    say("loading the model")
    task = load_model(config, data.label_names)
    longest = int(data.population.examples.lengths().max())
    check_length(task.model.config, longest, "data.max_length")
    engines = resolve(config, task.units, data, planner, say)
    config = config.model_copy(update={"sharing": engines.sharing(config.sharing)})
    transport = connect(config, task) if connect is not None else None
    if transport is not None:
        config = config.model_copy(update={"sharing": config.sharing.hearing(transport.memory)})
    trainer = make_trainer(config, task_view(config, task, engines.spare), engines.of(0))
    trainer_of = trainers(trainer, engines)
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
        workers=workers_of(config, task.device.type),
    )
    return Federation(config, task, data, star, trainer, transport, engines, prefix)


def workers_of(config: Config, device: str) -> int:
    """Processes that do the clients' work, no more than a round has clients.

    Raises:
        UserError: several, where none can be forked.
    """
    able = device == "cpu" and sys.platform == "linux"
    busy = math.ceil(config.cohort * (1 + config.oversampling))  # more have nothing to do
    if config.workers == "auto":
        cores = len(os.sched_getaffinity(0)) if able else 1
        return max(1, min(cores, busy))
    if config.workers > 1 and not able:
        raise UserError(
            f"workers = {config.workers}: they are forked, which Linux does, and with a model on "
            f"the CPU (here: {sys.platform}, {device}); leave it at 1"
        )
    return min(config.workers, busy)


def start_at(config: Config, task: Task) -> ClosedForm | None:
    """How the head is solved before round 1; None: it is not."""
    return start_of(config, getattr(task.model.get_base_model(), "pooling", "pooler"))


def groups_at(config: Config, start: ClosedForm, members: Sequence[int]) -> tuple[Groups, str]:
    """The groups that train against heads of their own, and where that was left open why there is
    one (``start.folds``)."""
    count, why = folds_of(start, config, len(members))
    return groups_of(members, count, Key(config.seed)), why


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
    shares = Shares.of(start, config.channel.least)
    return Answers(task, start.batch_size, start.min_count, around, radius, start.max_rows, shares)


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
