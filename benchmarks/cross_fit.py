"""`python -m benchmarks cross_fit`: LoRA against heads that have not seen the rows they judge.

Sets, rows and seeds as in `first_model` (CROSS_SETS, CROSS_SEEDS, CROSS_WAYS name them; 1,000
training rows, 50 clients, Dirichlet CROSS_ALPHA, which is 1.0 by default, default runs of FedAvg of
CROSS_ROUNDS rounds, which are 10). CROSS_GUARD=none takes every round's step. CROSS_ROWS=others
(the default) counts accuracy on as many further training rows that nobody has, by which a way may
be chosen; CROSS_ROWS=test on the 300 test rows. To be cheap: bfloat16, 32 tokens, and of a round's
step the guard tries the whole only.

Cross-fitting (``start.folds``): clients are in K groups, and those of group k train their adapters
against a head, and words, that were solved from the other groups' rows. Every run ends as the
product ends it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
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
from forefed.guard import HeldOut, guard_of
from forefed.run import configure
from forefed.run.build import Federation, build, groups_at, start_at, words_at
from forefed.run.guard_decisions import answers_of, guarded_by
from forefed.run.head_start import again, begin, finish
from forefed.run.start_result import Begun, with_start
from forefed.start import answer
from forefed.start.features import features, names_of_head


def lr(rate: float) -> tuple[str, ...]:
    return (f"client.optimiser.lr={rate}",)


ONE, FOUR = ("start.folds=1",), ("start.folds=4",)
WAYS = {
    "default": (*ONE, *lr(1e-3)),
    "default, 3e-3": (*ONE, *lr(3e-3)),
    "2 folds": ("start.folds=2", *lr(1e-3)),
    "4 folds": (*FOUR, *lr(1e-3)),
    "4 folds, 3e-4": (*FOUR, *lr(3e-4)),
    "4 folds, 3e-3": (*FOUR, *lr(3e-3)),
    "50 folds": ("start.folds=50", *lr(1e-3)),
    "4 folds, 20 rounds": (*FOUR, *lr(1e-3), "rounds=20"),
    "default, 20 rounds": (*ONE, *lr(1e-3), "rounds=20"),
    "today": (),
}
"""The settings of each; "default" was that until 2026-11-30, and "today" is what has been since."""


def tables() -> Iterator[tuple[str, str]]:
    names = os.environ.get("CROSS_SETS", "trec, fine;newsgroups20;sick").split(";")
    seeds = [int(s) for s in os.environ.get("CROSS_SEEDS", "0").split()]
    ways = os.environ.get("CROSS_WAYS", ";".join(WAYS)).split(";")
    rows = [row for name in names for seed in seeds for row in measured(name, seed, ways)]
    columns = ["set", "seed", "way", *COLUMNS]
    yield "Heads that have not seen the rows they judge", markdown(columns, rows)


CHEAP = ("model.dtype=bfloat16", "data.max_length=32")
COLUMNS = (
    "head alone",
    "from all rows",
    "first head",
    "again",
    "all",
    "end",
    "kept",
    "loss 1",
    "loss 10",
)
"""Accuracy of the head alone, and solved from all rows; of the trained model with the first head,
solved again, and from all rows; of what the run ends with; whether that is the trained model; the
training loss of the first and the last round."""


def measured(name: str, seed: int, ways: Sequence[str]) -> Iterator[list[str]]:
    kept, steps = answer.features, HeldOut.steps
    answer.features = first_model.remembered  # type: ignore[assignment]
    HeldOut.steps = (1.0,)
    try:
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene.of(Path(folder), name, seed)
            for way in ways:
                clock = time.process_time()
                found = scene.ended(WAYS[way])
                found["cpu_s"] = round(time.process_time() - clock, 1)
                print(json.dumps({"set": name, "seed": seed, "way": way, **found}), flush=True)
                yield [name, str(seed), way, *(f"{found[c]:.3f}" for c in COLUMNS)]
    finally:
        answer.features, HeldOut.steps = kept, steps


@dataclass(frozen=True)
class Scene:
    """One set with its solved head."""

    sets: tuple[str, ...]
    begun: Begun
    whole: Begun
    """The head alone, from all rows."""
    features: torch.Tensor
    """Of the rows that are counted, at the first parameters."""

    @staticmethod
    def of(folder: Path, name: str, seed: int) -> Scene:
        train, test = first_model.drawn(name, seed)
        alpha = float(os.environ.get("CROSS_ALPHA", "1.0"))
        if os.environ.get("CROSS_ROWS", "others") == "others":
            draw = np.random.default_rng(seed)
            first = first_model.parts(name)[0]
            known = {row.label for row in train}
            order = draw.permutation(len(first))[first_model.OF_TRAIN :][: first_model.OF_TRAIN]
            test = [first[i] for i in order if first[i].label in known]
        sets = (
            *first_model.sets_of(folder, name, train, test, alpha, seed),
            "strategy=fedavg",
            *CHEAP,
            f"rounds={os.environ.get('CROSS_ROUNDS', '10')}",
        )
        federation = build(configure(sets=sets))
        start = start_at(federation.config, federation.task)
        assert start is not None
        words = words_at(federation.config, federation.data.provenance["columns"])
        begun = begin(start, federation.task, federation.transport, None, words)
        whole = finish(begun, start, federation.task, federation.transport, None)
        return Scene(sets, begun, whole, counted(federation, federation.task.params))

    def ended(self, way: Sequence[str]) -> dict[str, Any]:
        """Accuracies of all ways to end a run."""
        federation = build(configure(sets=[*self.sets, *way]))
        config, task, transport = federation.config, federation.task, federation.transport
        start, star = start_at(config, task), federation.star
        assert start is not None
        words = words_at(config, federation.data.provenance["columns"])
        groups = partial(groups_at, config, start)
        folds = begin(start, task, transport, None, words, groups=groups).folds
        first = with_start(federation.start(), replace(self.begun, folds=folds))
        state, guard, losses, steps, rests = first, guard_of(config), [], [], 0
        assert guard is not None
        for _ in range(config.rounds):
            after, report = star.round(state)
            losses.append(float(np.mean([u.metrics["loss"] for u in report.updates])))
            if os.environ.get("CROSS_GUARD") == "none":
                state = after
                continue
            state, line = guarded_by(guard, federation, state, after)
            steps.append(line["step"])
            rests = rests + 1 if not line["step"] else 0
            if rests >= (guard.patience or 99):
                break
        body = {n: x for n, x in state.params.items() if n not in task.head}
        moved = any(not torch.equal(x, task.params[n]) for n, x in body.items())
        x_ND = counted(federation, state.params) if moved else self.features
        head_alone = self.right(federation, self.features, self.begun)
        found: dict[str, Any] = {
            "head alone": head_alone,
            "from all rows": self.right(federation, self.features, self.whole),
            "first head": self.right(federation, x_ND, self.begun),
        }
        if moved:
            solved = again(self.begun, start, task, transport, None, body)
            whole = finish(solved, start, task, transport, None, body=body)
            old, new = answers_of(self.begun.line), answers_of(solved.line)
            kept = new["loss"] <= (1 - guard.worth) * old["loss"]
            kept = kept and new["accuracy"] >= old["accuracy"]
            found |= {
                "again": self.right(federation, x_ND, solved),
                "all": self.right(federation, x_ND, whole),
                "held": [old["loss"], new["loss"], old["accuracy"], new["accuracy"]],
            }
        else:
            kept = False
            found |= {"again": found["head alone"], "all": found["from all rows"]}
        found["kept"] = float(kept)
        found["end"] = found["all"] if kept else found["from all rows"]
        return found | {"loss 1": losses[0], "loss 10": losses[-1], "steps": steps}

    def right(self, federation: Federation, x_ND: torch.Tensor, begun: Begun) -> float:
        """The share of the counted rows that a head and its words get right."""
        test = federation.data.test
        weight, bias = names_of_head(federation.task)
        logits = x_ND @ begun.head[weight].T + begun.head[bias]
        if begun.words is not None:
            logits = begun.words.added(logits, *test.tokens_of(np.arange(len(test))))
        said = logits.argmax(1).numpy()
        return float(np.mean(said == test.labels))


def counted(federation: Federation, params: Params) -> torch.Tensor:
    test = federation.data.test
    return features(federation.task, params, test, np.arange(len(test)), 32)
