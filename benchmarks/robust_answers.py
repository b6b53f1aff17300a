"""`python -m benchmarks.robust_answers`: what lies in answers cost, and what a trimmed mean leaves.

Heads and words: TREC, 1,000 training rows, 50 clients (Dirichlet 1.0) of whom 24 % lie in what they
say of the candidate heads on their held-out rows, and in words' sums; features and sums of features
are honest. With f > 0 answers are checked and rows capped, and none trimmed (docs/LOG.md). The head
alone, from all rows, as a default run ends without adapters.

Guard: the head trained from zero as in ``benchmarks.robust`` (mean of honest updates, eight
rounds), each round's step judged by 20 clients' held-out rows, of whom 24 % of all lie.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import forefed
from benchmarks import first_model
from benchmarks.cross_fit import Scene, counted
from benchmarks.robust import RATE, loss, world
from benchmarks.robust import accuracy as head_accuracy
from benchmarks.table import markdown
from forefed.attacks.answers import Lies, lied
from forefed.core.keys import Key
from forefed.core.types import Lost, Params, Reply, Transport
from forefed.federation.guarding import Jury, guarded
from forefed.federation.state import RunState
from forefed.guard import HeldOut
from forefed.run import configure
from forefed.run.build import build, start_at, words_at
from forefed.run.head_start import begin, finish
from forefed.start import answer
from forefed.wire.questions import decode_question, encode_answer

SEEDS = 3
F = 0.25
CASES: tuple[tuple[Lies, float], ...] = (
    ("honest", 1),
    ("reversed", 1),
    ("reversed", 5),
    ("drowned", 1),
)
"""What liars say, and how many times their rows they claim to have."""


def heads(seed: int) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    """The lie, f, test accuracy, and what was chosen."""
    kept = answer.features
    answer.features = first_model.remembered  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train, test = first_model.drawn("trec", seed)
            sets = (
                *first_model.sets_of(Path(folder), "trec", train, test, 1.0, seed),
                *("strategy=fedavg", "adapter=head", "rounds=0"),
            )
            seen = None
            for how, claims in CASES:
                attack = (
                    f"attack={{kind='sign_flip', hostile=0.24, answers='{how}', claims={claims}}}"
                )
                for f in (0.0, F):
                    more = (f"start={{kind='closed_form', then='trained', f={f or 0}}}", attack)
                    federation = build(configure(sets=[*sets, *more]))
                    start = start_at(federation.config, federation.task)
                    assert start is not None
                    task, transport = federation.task, federation.transport
                    words = words_at(federation.config, federation.data.provenance["columns"])
                    begun = begin(start, task, transport, None, words)
                    whole = finish(begun, start, task, transport, None)
                    seen = counted(federation, task.params) if seen is None else seen
                    right = Scene.right(cast(Any, None), federation, seen, whole)
                    line = {n: begun.line[n] for n in ("solver", "regularisation", "share")}
                    line["left_out"] = len(begun.line.get("left_out", ()))
                    yield f"{how} x {claims:g}", f, right, line
    finally:
        answer.features = kept


@dataclass
class Judges:
    """A transport to clients that hold rows of features out; some lie."""

    clients: Sequence[Mapping[str, torch.Tensor]]
    who: frozenset[int]
    how: Lies
    claims: float

    def members(self) -> range:
        return range(len(self.clients))

    def tell(
        self, messages: Mapping[int, bytes], round: int, deadline_s: float | None
    ) -> Iterator[Reply | Lost]:
        for client, message in messages.items():
            _, about, tensors = decode_question(message)
            told = self.judged(client, tensors)
            if client in self.who:
                told = lied("loss", told, self.how, self.claims)
            yield Reply(round, client, encode_answer("loss", about, told), len(message))

    def judged(self, client: int, tensors: Params) -> Params:
        rows, params = self.clients[client], Params()
        losses, points = [], []
        for i in range(1 + max(int(n.split("/")[0]) for n in tensors)):
            params |= {n.split("/")[1]: x for n, x in tensors.items() if n.startswith(f"{i}/")}
            logits = rows["x"] @ params["head.weight"] + params["head.bias"]
            losses.append(torch.nn.functional.cross_entropy(logits, rows["y"], reduction="sum"))
            points.append((logits.argmax(1) == rows["y"]).double())
        return {
            "loss": torch.stack(losses).double(),
            "right": torch.stack([p.sum() for p in points]),
            "apart": torch.stack([((p - points[0]) ** 2).sum() for p in points]),
            "n": torch.tensor(float(len(rows["y"])), dtype=torch.float64),
        }


def trained(seed: int, how: Lies, claims: float, f: float) -> float:
    clients, _, test = world(seed)
    cut = [len(c["y"]) // 5 for c in clients]
    training = tuple({n: x[k:] for n, x in c.items()} for c, k in zip(clients, cut, strict=True))
    held = [{n: x[:k] for n, x in c.items()} for c, k in zip(clients, cut, strict=True)]
    who = frozenset(Key(seed).fold("liars").choice(len(clients), 12))
    judges = cast(Transport, Judges(held, who, how, claims))
    jury = Jury(judges, "it", None, True, True, hostile=f)
    params: Params = {"head.weight": torch.zeros(384, 6), "head.bias": torch.zeros(6)}
    for number in range(8):
        tried = forefed.simulate(
            loss,
            params,
            training,
            units=[tuple(params)],
            rounds=1,
            seed=100 * seed + number,
            engine={"kind": "backprop", "micro_batch": 64},
            client={"batch_size": 64, "optimiser": {"kind": "adamw", "lr": RATE}},
        ).params
        before, after = RunState(number, params), RunState(number + 1, tried)
        params = guarded(HeldOut(patience=None), jury, Key(seed), before, after)[0].params
    return head_accuracy(params, test)


def main() -> None:
    found: dict[tuple[str, float], list[float]] = {}
    for seed in range(SEEDS):
        for how, claims in CASES:
            for f in (0.0, F):
                right = trained(seed, how, claims, f)
                found.setdefault((f"{how} x {claims:g}", f), []).append(right)
                print("guard", seed, how, claims, f, right, flush=True)
    table("guard", found)
    found = {}
    for seed in range(SEEDS):
        for case, f, right, line in heads(seed):
            found.setdefault((case, f), []).append(right)
            print("heads", seed, case, f, right, line, flush=True)
    table("heads and words", found)


def table(what: str, found: Mapping[tuple[str, float], Sequence[float]]) -> None:
    cases = dict.fromkeys(case for case, _ in found)
    body = [[c, *(f"{np.mean(found[c, f]):.3f}"[1:] for f in (0.0, F))] for c in cases]
    print(markdown([f"{what}: lie", "all are believed", f"f = {F:g}"], body), flush=True)


if __name__ == "__main__":
    main()
