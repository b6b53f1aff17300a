"""`python -m benchmarks after_start`: what LoRA adds to the head that a run begins with.

Sets, rows and seeds as in `first_model` (AFTER_SETS, AFTER_SEEDS name them; 1,000 training rows).
From the default start, whose head stays: nothing; LoRA by backprop over all training rows in one
place; FedAvg, each of whose rounds the guard judges and none ends. The words' logits are part of
the loss. Accuracy and loss on the clients' held-out rows, by which one may choose, and on the test
rows.

AFTER=drift compares what is done against clients' drift instead: FedAvg at Dirichlet 0.1, of which
every round's step is taken (AFTER_ROUNDS of them), with groups as by default at three times the
rates but for plain SGD, and the modifiers as they are by default. To be cheap: bfloat16, 32 tokens.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import first_model
from benchmarks.table import markdown
from forefed.core.types import Params
from forefed.guard import HeldOut
from forefed.run import configure
from forefed.run.build import Federation, build, groups_at, start_at, words_at
from forefed.run.guard_decisions import guarded_by
from forefed.run.head_start import begin
from forefed.run.start_result import Begun, with_start
from forefed.start import answer

EPOCHS, ROUNDS, BATCH = 3, 10, 16
RATES = (3e-4, 1e-3, 3e-3)
SGD = ("client.optimiser={kind='sgd', lr=0.1}",)
DRIFT: dict[str, tuple[str, ...]] = {
    "default": (),
    "FedProx": ("modifiers=['proximal']",),
    "logit adjustment": ("modifiers=['logit_adjustment']",),
    "plain SGD": SGD,
    "SCAFFOLD": (*SGD, "modifiers=['scaffold']"),
}
"""SCAFFOLD wants plain client steps, so those stand beside it."""
CHEAP = ("model.dtype=bfloat16", "data.max_length=32")


def tables() -> Iterator[tuple[str, str]]:
    names = os.environ.get("AFTER_SETS", "trec;sst2;sick;ag_news").split(";")
    seeds = [int(s) for s in os.environ.get("AFTER_SEEDS", "0").split()]
    rows = [row for name in names for seed in seeds for row in measured(name, seed)]
    head = ["set", "seed", "what", "rate", "held-out accuracy", "loss", "test accuracy", "loss"]
    yield "What follows the start", markdown(head, rows)


def measured(name: str, seed: int) -> Iterator[list[str]]:
    kept = answer.features
    answer.features = first_model.remembered  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene.of(Path(folder), name, seed)
            drift = os.environ.get("AFTER") == "drift"
            for what, rate, found in scene.against_drift() if drift else scene.lines():
                said = {"set": name, "seed": seed, "what": what, "rate": rate, **found}
                print(json.dumps(said), flush=True)
                yield [name, str(seed), what, f"{rate:g}", *(f"{x:.3f}" for x in found.values())]
    finally:
        answer.features = kept


@dataclass(frozen=True)
class Scene:
    """One set with its solved head."""

    sets: tuple[str, ...]
    begun: Begun
    seed: int

    @staticmethod
    def of(folder: Path, name: str, seed: int) -> Scene:
        train, test = first_model.drawn(name, seed)
        drift = os.environ.get("AFTER") == "drift"
        made = first_model.sets_of(folder, name, train, test, 0.1 if drift else 1.0, seed)
        sets = (*made, "strategy=fedavg", *(CHEAP if drift else ()))
        config = configure(sets=sets)
        federation = build(config)
        start = start_at(config, federation.task)
        assert start is not None
        words = words_at(config, federation.data.provenance["columns"])
        beginning = partial(begin, groups=partial(groups_at, config, start)) if drift else begin
        begun = beginning(start, federation.task, federation.transport, None, words)
        return Scene(sets, begun, seed)

    def lines(self) -> Iterator[tuple[str, float, dict[str, float]]]:
        federation = build(configure(sets=self.sets))
        params = {**federation.task.params, **self.begun.head}
        yield "nothing", 0.0, self.scores(federation, params)
        for rate in RATES:
            for epoch, params in enumerate(self.pooled(federation, rate), 1):
                yield f"pooled, epoch {epoch}", rate, self.scores(federation, params)
        for rate in RATES:
            yield f"FedAvg, {ROUNDS} rounds", rate, self.fedavg(rate)

    def pooled(self, federation: Federation, rate: float) -> Iterator[Params]:
        """The parameters after each epoch over all training rows; the rate falls to 0."""
        task, population = federation.task, federation.data.population
        rows = _together([population.client(c).train for c in range(population.size)])
        leaves = {
            n: x.clone().requires_grad_(n not in task.head)
            for n, x in {**task.params, **self.begun.head}.items()
        }
        optimiser = torch.optim.AdamW([x for x in leaves.values() if x.requires_grad], lr=rate)
        steps = EPOCHS * -(-len(rows) // BATCH)
        falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: 1 - done / steps)
        draw = np.random.default_rng(self.seed)
        for _ in range(EPOCHS):
            order = rows[draw.permutation(len(rows))]
            for at in range(0, len(order), BATCH):
                some = order[at : at + BATCH]
                batch = population.examples.batch(some)
                words = self.begun.words
                logits = task.logits_with(leaves, batch, population.examples, some, words)
                optimiser.zero_grad()
                (task.objective.loss_sum(logits, batch) / len(some)).backward()
                optimiser.step()
                falling.step()
            yield {n: x.detach().clone() for n, x in leaves.items()}

    def fedavg(self, rate: float) -> dict[str, float]:
        more = (f"client.optimiser.lr={rate}", f"rounds={ROUNDS}")
        federation = build(configure(sets=[*self.sets, *more]))
        state, guard = with_start(federation.start(), self.begun), HeldOut(worth=0.0)
        for _ in range(ROUNDS):
            after, _report = federation.star.round(state)
            state, _line = guarded_by(guard, federation, state, after)
        return self.scores(federation, state.params)

    def against_drift(self) -> Iterator[tuple[str, float, dict[str, float]]]:
        federation = build(configure(sets=self.sets))
        yield "nothing", 0.0, self.scores(federation, {**federation.task.params, **self.begun.head})
        rounds = os.environ.get("AFTER_ROUNDS", str(ROUNDS))
        for what, more in DRIFT.items():
            federation = build(configure(sets=[*self.sets, *more, f"rounds={rounds}"]))
            config, begun = federation.config, self.begun
            if begun.folds is not None:
                rate = getattr(config.start, "folds_rate", 1.0)
                begun = replace(begun, folds=replace(begun.folds, rate=rate))
            state = with_start(federation.start(), begun)
            for _ in range(config.rounds):
                state, _report = federation.star.round(state)
            yield what, config.client.optimiser.lr, self.scores(federation, state.params)

    def scores(self, federation: Federation, params: Params) -> dict[str, float]:
        population, test, found = federation.data.population, federation.data.test, {}
        held = _together([population.client(c).test for c in range(population.size)])
        parts: Sequence[tuple[str, Any, Any]] = (
            ("held-out", population.examples, held),
            ("test", test, np.arange(len(test))),
        )
        for name, examples, rows in parts:
            sums = federation.task.evaluate(params, examples, rows, 32, words=self.begun.words)
            found[name] = federation.task.objective.results(sums)["accuracy"]
            found[f"{name} loss"] = float(sums["loss_sum"] / sums["weight"])
        return found


def _together(parts: list[Any]) -> Any:
    return np.sort(np.concatenate(parts))
