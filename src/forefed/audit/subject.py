"""The run's own client, and everything that its server knows beside the rows.

The client is that of ``run/assemble.py``: its engine, optimiser, modifiers, codec, sharing, batches
and steps are those of the configuration, and what it encodes is decoded as the server does. The
attacker has the same client and calls it on rows of its own choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forefed.audit import synthetic
from forefed.config.compat import check
from forefed.config.config import Config
from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key, Secret
from forefed.core.types import Batch, ClientContext, Lost, Order, Params, Reply, Update
from forefed.data.examples import ClientData, Examples, Indices
from forefed.data.prepare import prepare
from forefed.data.preview import preview
from forefed.data.sources import Hub
from forefed.federation.inprocess import ClientStore
from forefed.federation.replica import Replica
from forefed.federation.star import Star
from forefed.federation.state import RunState
from forefed.gradients.auto import Auto
from forefed.gradients.backprop import Backprop
from forefed.gradients.engine import value_and_grad
from forefed.gradients.forward import Forward
from forefed.local import Trainer, replay
from forefed.local.samplers import Poisson
from forefed.models.load import load_tokenizer
from forefed.models.task import Task
from forefed.run import record
from forefed.run.assemble import assemble, make_trainer
from forefed.run.build import answers, frozen_head, load_model, start_at, task_view
from forefed.run.checkpoint import check_fits, load_checkpoint
from forefed.run.head_start import params_of
from forefed.run.start_result import load_begun
from forefed.select import Uniform
from forefed.start.answer import targets_of_task
from forefed.start.solver import Solver
from forefed.start.sums import Sums

MOST_ROWS = 32
"""Of the median client, as far as its message is made: an audit is to take minutes."""
WARM_ROUNDS = 2
"""Rounds on synthetic rows after which a configuration is audited, as LoRA's A has no gradient
before the first."""
AT_ONCE = 8
"""Rows of one backward pass."""
AUXILIARY = 16
"""Rows that the attacker has of its own."""


@dataclass(frozen=True)
class Nobody:
    """A transport that is only asked who there is."""

    count: int
    store: ClientStore
    replica: Replica | None = None
    memory: Mapping[int, int] = field(default_factory=dict)

    def members(self) -> Sequence[int]:
        return range(self.count)

    def exchange(
        self,
        orders: Iterable[Order],
        deadline_s: float | None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Reply | Lost]:
        raise AssertionError("an audit calls its client itself")

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        raise AssertionError("an audit tells nobody")


class Silent(Secret):
    """A secret of which Gaussian noise is 0: the attacker, who knows the defence but not its noise,
    computes without it."""

    def fold(self, *labels: Any) -> Self:
        return self

    def blocks(self, start: int, count: int, word2: int = 0, word3: int = 0) -> NDArray[np.uint32]:
        return np.full((count, 4), 0xFFFFFFFF, dtype=np.uint32)  # privacy/noise.py makes 0 of it


@dataclass(frozen=True)
class Subject:
    """``rows``: what messages are made of; ``state``: where the run is when a message is read."""

    config: Config
    task: Task
    trainer: Trainer
    star: Star
    tokenizer: Any
    rows: Examples
    own: bool
    """Are they the user's?"""
    sizes: tuple[int, ...]
    """Training rows of the clients whose messages are made: one, and the median client's."""
    typical: int
    """Training rows of the median client."""
    state: RunState
    vocabulary: Indices
    """Ordinary tokens."""

    @property
    def classes(self) -> int:
        """Classes of which each row has one; 0: the task is another one."""
        return self.task.n_labels if self.config.data.task.head == "classification" else 0

    @property
    def auxiliary(self) -> Indices:
        """The attacker's own rows, of which no message is made."""
        return np.arange(min(AUXILIARY, len(self.rows) // 4))

    def drawn(self, count: int, key: Key) -> Indices:
        """Rows of a client or of a guess, all different, none of the auxiliary ones."""
        first = len(self.auxiliary)
        return first + key.permutation(len(self.rows) - first)[:count]

    @property
    def group(self) -> int:
        """Clients whose sum is all that the server sees: 1 where it sees each; else as few as may
        be, which is the worst case."""
        return self.config.channel.least

    def orders(self, trial: int) -> list[Order]:
        """What the server asks of one client, and of those in one sum with it: another round, and
        so other directions, in each trial."""
        known = replace(self.state, round=self.state.round + trial)
        orders = list(self.star.plan(known).values())
        first = orders[trial % len(orders)]
        alike = [o for o in orders if o.assigned == first.assigned and o.client != first.client]
        return [first, *alike[: self.group - 1]]

    def message(
        self, order: Order, rows: Examples, secret: Secret, trainer: Trainer | None = None
    ) -> Update:
        """What the server decodes of a client with these training rows."""
        update, _ = (trainer or self.trainer)(order, everything(rows), {}, secret)
        context = ClientContext(order=order, own=secret)
        payload = self.config.codec.encode(update, context)
        return self.config.codec.decode(payload, order)

    def seen_by_server(
        self, orders: Sequence[Order], rows: Sequence[Examples], secret: Secret
    ) -> Update:
        """One client's message, or the sum over a group as it comes out of the channel (without its
        masks, which cancel, and its rounding)."""
        secrets = [secret, *(Secret.new() for _ in orders[1:])]
        each = zip(orders, rows, secrets, strict=True)
        return summed([self.message(order, some, own) for order, some, own in each])

    def guessed(self, order: Order, rows: Examples) -> Update:
        """The same as the attacker computes it, who does not have the client's secret: it takes all
        rows where some are drawn in secret, and gets slopes from one backward pass where that is
        quicker."""
        trainer = self.trainer
        if isinstance(trainer.settings.sampler, Poisson):
            whole = trainer.settings.model_copy(update={"sampler": Poisson(rate=1.0)})
            trainer = replace(trainer, settings=whole)
        if isinstance(trainer.engine, Forward):
            quick = trainer.engine.model_copy(update={"emulate": True})
            trainer = replace(trainer, engine=quick)
        return self.message(order, rows, Silent(0), trainer)

    def gradient(self, batch: Batch) -> tuple[float, Params]:
        """Loss and its exact gradient by everything that is trained and travels."""
        fixed = {**self.task.params, **self.state.params}
        return value_and_grad(self.task.loss, trees.pick(fixed, self.shared), fixed, batch)

    def by_label(self, rows: Examples, index: int) -> list[tuple[float, Params]]:
        """Loss and gradient of one row under every label; of a task without classes, its own."""
        batch = rows.batch([index])
        if not self.classes:
            return [self.gradient(batch)]
        fixed = {**self.task.params, **self.state.params}
        leaves = {n: fixed[n].detach().requires_grad_(True) for n in self.shared}
        with torch.enable_grad():
            logits_C = self.task.logits({**fixed, **leaves}, batch)[0].float()
            of_logits = [
                torch.autograd.grad(x, list(leaves.values()), retain_graph=True, allow_unused=True)
                for x in logits_C
            ]
        logs_C = logits_C.detach().log_softmax(0)
        mean = [
            torch.stack([p * g for p, g in zip(logs_C.exp(), each, strict=True)]).sum(0)
            if each[0] is not None
            else torch.zeros_like(x)
            for each, x in zip(zip(*of_logits, strict=True), leaves.values(), strict=True)
        ]
        return [
            (
                -float(logs_C[c]),
                {
                    n: m if g is None else m - g
                    for n, m, g in zip(leaves, mean, of_logits[c], strict=True)
                },
            )
            for c in range(self.classes)
        ]

    def mean_gradient(self, rows: Examples) -> Params:
        """Of the mean loss over these rows."""
        total: Params = {}
        whole = self.task.loss.weight(rows.batch(np.arange(len(rows))))
        for start in range(0, len(rows), AT_ONCE):
            batch = rows.batch(np.arange(start, min(start + AT_ONCE, len(rows))))
            share = self.task.loss.weight(batch) / whole
            _, g = self.gradient(batch)
            total = {n: share * x + total.get(n, 0.0) for n, x in g.items()}
        return total

    @property
    def shared(self) -> tuple[str, ...]:
        """The parameters that some client may be told to train and send."""
        split = self.config.sharing.split(self.task.units, 1)
        frozen = frozen_head(self.config, self.task)
        return tuple(n for n in self.task.params if n in split.shared and n not in frozen)

    def steps(self, rows: int) -> int:
        """Local steps of a client with so many rows, as the server knows them."""
        data = ClientData(self.rows, np.arange(rows), np.arange(0))
        order = Order(self.config.seed, 1, 0, (), {})
        return len(self.trainer.batches(order, data, ClientContext(order=order, own=Silent(0))))

    def seen(self, order: Order, rows: Examples, secret: Secret) -> Indices:
        """The client's rows that a message of this order is made of; all, where it is of none."""
        context = ClientContext(order=order, own=secret)
        batches = self.trainer.batches(order, everything(rows), context)
        drawn = np.unique(np.concatenate([np.arange(0), *batches])).astype(np.int64)
        return drawn if len(drawn) else np.arange(len(rows))

    def batch_size(self, rows: int) -> int:
        """Rows of its largest step."""
        size = self.config.client.batch_size
        return rows if size == "all" else min(rows, size)


def summed(updates: Sequence[Update]) -> Update:
    """The mean by examples of some clients' updates; of one it is itself."""
    if len(updates) == 1:
        return updates[0]
    total = sum(u.n_examples for u in updates)

    def mean(trees_: Sequence[Params]) -> Params:
        shares = [u.n_examples / total for u in updates]
        return {
            n: torch.stack([w * t[n].double() for w, t in zip(shares, trees_, strict=True)]).sum(0)
            for n in trees_[0]
        }

    metrics = {
        name: sum(u.n_examples * u.metrics.get(name, 0.0) for u in updates) / total
        for name in updates[0].metrics
    }
    dense = updates[0].grad is not None
    return Update(
        client=-1,
        n_examples=total,
        grad=mean([u.grad or {} for u in updates]) if dense else None,
        slopes=None if dense else mean([u.slopes or {} for u in updates]),
        metrics=metrics,
    )


def subject_of(
    config: Config, run: Path | None, own_rows: bool, trials: int, say: Callable[[str], None]
) -> Subject:
    """Load what a run would, without its rows unless they are asked for.

    Raises:
        UserError: what cannot work.
    """
    check(config)
    key = Key(config.seed).fold("audit")
    cache = config.out / ".cache"
    there = cache if cache.is_dir() else None
    engine = config.engine
    if isinstance(engine, Auto):
        engine = Backprop(micro_batch="auto")
    client = config.client.model_copy(update={"prefix_cache": "off"})
    # the attacks are on whoever takes part, however they are drawn
    config = config.model_copy(
        update={
            "engine": engine.among(True, config.directions),
            "client": client,
            "select": Uniform(),
        }
    )
    say("loading the model")
    tokenizer = load_tokenizer(config.model)
    names, typical, rows = _rows(config, run, own_rows, tokenizer, key, there)
    task = load_model(config, names)
    if rows is None:
        say("making synthetic rows")
        count = AUXILIARY + max(trials * 8, 2 * MOST_ROWS) + 64
        classes, longest = task.objective.outputs, config.data.max_length
        rows = synthetic.rows(
            config.data.task, classes, count, key.fold("rows"), tokenizer, longest, there
        )
    trainer = make_trainer(config, task_view(config, task, None))
    nobody = Nobody(max(config.cohort, 2), ClientStore())
    # whoever is asked, of a secret run: an audit draws each message's own
    star, _ = assemble(
        config,
        task,
        lambda _: trainer,
        nobody.count,
        lambda _: ClientData(rows, np.arange(0), np.arange(0)),
        Secret.new(),
        nobody,
        measure=False,
        frozen=frozen_head(config, task),
    )
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in tokenizer.get_vocab().values() if i not in special]
    n = max(1, min(typical, MOST_ROWS, len(rows) - AUXILIARY - 12))
    found = Subject(
        config=config,
        task=task,
        trainer=trainer,
        star=star,
        tokenizer=tokenizer,
        rows=rows,
        own=own_rows,
        sizes=tuple(sorted({1, n})),
        typical=typical,
        state=RunState(0, task.params),
        vocabulary=np.unique(np.array(ordinary, dtype=np.int64)),
    )
    return replace(found, state=_state(found, run, say))


def _rows(
    config: Config,
    run: Path | None,
    own: bool,
    tokenizer: Any,
    key: Key,
    cache: Path | None,
) -> tuple[tuple[str, ...], int, Examples | None]:
    """Class names, the median client's training rows, and the user's rows where they are asked
    for."""
    data = Key(config.seed).fold("data")
    if own:
        if config.partition.kind == "sites":
            raise UserError("--own-rows: the rows of this configuration are at the sites")
        made = prepare(config.data, config.partition, tokenizer, data, cache)
        population = made.population
        sizes = [len(population.client(c).train) for c in range(min(population.size, 1000))]
        examples = population.examples
        some = key.fold("own").permutation(len(examples))[: max(1000, 4 * MOST_ROWS)]
        if len(some) < 2 * AUXILIARY:
            raise UserError(f"--own-rows: {len(some)} rows are too few for an audit")
        return made.label_names, int(np.median(sizes)), synthetic.taken(examples, some)
    if run is not None and (run / "partition.json").exists():
        about = record.read_json(run / "partition.json")
        counts = [size for size in about.get("sizes", ()) if size]
        names = tuple(about.get("labels") or ())
        return names, int(np.median(counts)) if counts else config_rows(config), None
    if isinstance(config.data.source, Hub):
        raise UserError(
            "audit: the classes and sizes of clients of a hub's data set are not known without the "
            "network; audit the folder of a run"
        )
    seen = preview(config.data, config.partition, data, cache)
    sizes = [int(s) for s in seen.sizes if s]
    return seen.label_names, int(np.median(sizes)) if sizes else config_rows(config), None


def config_rows(config: Config) -> int:
    """Rows of a client of which nothing is known: two steps, as the smallest hospital has."""
    size = config.client.batch_size
    return 2 * size if isinstance(size, int) else MOST_ROWS


def _state(subject: Subject, run: Path | None, say: Callable[[str], None]) -> RunState:
    """Where a run has ended, or a configuration is after some rounds on the auxiliary rows."""
    config, task = subject.config, subject.task
    first = RunState(0, {**task.params, **_head(subject, run)})
    if run is not None:
        saved = load_checkpoint(run, _as_recorded(run), task.device)
        if saved is None:
            raise UserError(f"{run}: nothing is trained yet; audit its configuration instead")
        check_fits(run, saved.state, task.params)
        return RunState(saved.state.round, saved.state.params)
    if config.rounds == 0:
        return first
    say("training a little on synthetic rows")
    params = first.params
    own = synthetic.taken(subject.rows, subject.auxiliary)
    for number in range(WARM_ROUNDS):
        told: dict[str, list[Tensor]] = {}
        for order in subject.star.plan(RunState(number, params)).values():
            update = replay(subject.trainer, order, subject.guessed(order, own))
            for name, x in (update.grad or {}).items():
                told.setdefault(name, []).append(x)
        params = {
            n: x - torch.stack(told[n]).mean(0) if n in told else x for n, x in params.items()
        }
    return RunState(WARM_ROUNDS, params)


def _as_recorded(run: Path) -> Config:
    from forefed.config.config import configure

    return configure(base=record.read_config(run))


def _head(subject: Subject, run: Path | None) -> Params:
    """The head as the first round has it: the run's, or solved from the auxiliary rows."""
    config, task = subject.config, subject.task
    start = start_at(config, task)
    begun = load_begun(run) if run is not None else None
    if begun is not None:
        return begun.head
    if start is None:
        return {}
    total = answers(config, task, None).sums_of({}, everything(subject.rows))
    targets = targets_of_task(task)
    candidate = (targets.solvers[0], 0.3)
    return params_of(task, targets.head(Solver.of(total, targets.unit), candidate, start.prior))


def everything(rows: Examples) -> ClientData:
    return ClientData(rows, np.arange(len(rows)), np.zeros(0, dtype=np.int64))


def sums_of(subject: Subject, group: Sequence[Examples]) -> Sums:
    """What clients with these rows answer before round 1, added up as the server reads it."""
    answer = answers(subject.config, subject.task, None)
    parts = [answer.sums_of({}, everything(rows)) for rows in group]
    found = parts[0]
    for part in parts[1:]:
        found = found.plus(part)
    return Sums.unpacked(found.packed(), len(found.y), len(found.x))
