"""`python -m benchmarks curvature`: SPRY's basis mode with and without Gauss-Newton steps.

Sets and rows as in `first_model` (CURVATURE_SETS and CURVATURE_SEEDS name them, FIRST_MODEL_TRAIN
how many rows; 10 clients, Dirichlet 1.0, all of them in every round with all of their rows, one
step each, which is a sum and has no drift). 16 numbers in each of the last block's six matrices;
bfloat16, 32 tokens. From the solved head, which stays, and from zero. Ways take the same passes:
the logits' tangents are there anyway. Every round's step is taken; held-out rows, by which a
damping or a rate is chosen, are counted after every round, test rows after the last.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import first_model
from benchmarks.table import markdown
from forefed.core.types import Params
from forefed.models.bag_of_words import Words
from forefed.run import configure
from forefed.run.build import Federation, build, start_at, words_at
from forefed.run.head_start import begin
from forefed.run.start_result import Begun, with_start

ROUNDS = int(os.environ.get("CURVATURE_ROUNDS", "5"))
SETTINGS = (
    *("strategy=fedfgd", "directions=basis", "codec=dense", "guard=none", "cohort=10"),
    *("partition.clients=10", "partition.alpha=1.0", "client.max_steps=1"),
    *("client.batch_size=all", "client.optimiser={kind='sgd', lr=1.0}"),
    "adapter={kind='tinylora', r=64, u=16, targets='all-linear', layers='last:1'}",
    *("model.dtype=bfloat16", "data.max_length=32", f"rounds={ROUNDS}"),
)
STARTS = {"solved head": (), "zero": ("start=none",)}
PLAIN = "server={{kind='adam', lr={}, head_lr={}}}"


def newton(damping: float) -> tuple[str, ...]:
    modifier = f"modifiers=[{{kind='gauss_newton', damping={damping}, blocks='all'}}]"
    return ("engine.curvature=true", "server={kind='sgd', lr=1.0}", modifier)


WAYS = {
    "Adam, 5e-3": (PLAIN.format(5e-3, 3e-2),),
    "Adam, 2e-2": (PLAIN.format(2e-2, 3e-2),),
    "Gauss-Newton, 1": newton(1.0),
    "Gauss-Newton, 10": newton(10.0),
}


def tables() -> Iterator[tuple[str, str]]:
    names = os.environ.get("CURVATURE_SETS", "sst2").split(";")
    seeds = [int(s) for s in os.environ.get("CURVATURE_SEEDS", "0 1").split()]
    rows = [row for seed in seeds for name in names for row in measured(name, seed)]
    head = ["set", "seed", "start", "way", "training loss", "held-out loss", "accuracy", "test"]
    yield "Gauss-Newton steps", markdown(head, rows)


def measured(name: str, seed: int) -> Iterator[list[str]]:
    train, test = first_model.drawn(name, seed)
    with tempfile.TemporaryDirectory() as folder:
        made = first_model.sets_of(Path(folder), name, train, test, 1.0, seed)
        for start, more in STARTS.items():
            begun = begun_at([*made, *SETTINGS, *more])
            for way, own in WAYS.items():
                clock = time.process_time()
                line = trained([*made, *SETTINGS, *more, *own], begun)
                line["cpu_s"] = round(time.process_time() - clock, 1)
                said = {"set": name, "seed": seed, "start": start, "way": way, **line}
                print(json.dumps(said), flush=True)
                found = (line["loss"], line["held loss"], line["held"], line["test"])
                yield [name, str(seed), start, way, *(f"{x[-1]:.3f}" for x in found)]


def begun_at(sets: list[str]) -> Begun | None:
    federation = build(configure(sets=sets))
    config, task = federation.config, federation.task
    start = start_at(config, task)
    if start is None:
        return None
    words = words_at(config, federation.data.provenance["columns"])
    return begin(start, task, federation.transport, None, words)


def trained(sets: list[str], begun: Begun | None) -> dict[str, Any]:
    """By round, before the first and after each: the training loss (before the step), the held-out
    loss, held-out and test accuracy."""
    federation = build(configure(sets=sets))
    state, told = federation.start(), None
    if begun is not None:
        state, told = with_start(state, begun), begun.words
    found: dict[str, Any] = {"loss": [], "held loss": [], "held": [], "test": []}
    counted(federation, state.params, told, found, False)
    passes, rounds = 0.0, federation.config.rounds
    for done in range(rounds):
        state, report = federation.star.round(state)
        heard = [u for u in report.updates if u.n_examples]
        weights = [u.n_examples for u in heard]
        losses = [u.metrics["loss"] for u in heard]
        found["loss"].append(round(float(np.average(losses, weights=weights)), 4))
        passes += sum(u.metrics["forwards"] for u in report.updates)
        counted(federation, state.params, told, found, done + 1 == rounds)
    return found | {"forwards": passes}


def counted(
    federation: Federation, params: Params, words: Words | None, found: dict[str, Any], last: bool
) -> None:
    population, test = federation.data.population, federation.data.test
    held = np.sort(np.concatenate([population.client(c).test for c in range(population.size)]))
    task = federation.task
    parts = [("held", population.examples, held)]
    if last:
        parts.append(("test", test, np.arange(len(test))))
    for name, examples, rows in parts:
        sums = task.evaluate(params, examples, rows, 32, words=words)
        found[name].append(round(task.objective.results(sums)["accuracy"], 4))
        if name == "held":
            found["held loss"].append(round(float(sums["loss_sum"] / sums["weight"]), 4))
