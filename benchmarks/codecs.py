"""`python -m benchmarks.codecs`: what fewer bits up cost, on a head over frozen features.

TREC as in benchmarks/robust.py (MiniLM, 384 features, 50 clients, Dirichlet 1.0, 500 training rows
held out, three seeds of clients and order), from a head of zeros.

Slopes: K = 32 random signs over the 2,310 numbers, one step on 64 rows in each of 60 rounds of 10
clients, plain gradient steps, directions of each client's own ("vote": shared, the majority).
Deltas: one local epoch (batches of 64) in each round of 25 clients: AdamW for 20 rounds, or plain
gradient steps for 100 (by AdamW all elements move about as far, so the largest say little).
Rates of "Slopes", of plain steps (for "dense") and of DGC's server were chosen on the held-out rows
of the first seed, out of ``RATES``. Cells are kept in compare/codecs.jsonl.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

import forefed
from benchmarks import cells
from benchmarks.robust import RATE, SEEDS, accuracy, loss, world
from benchmarks.table import markdown
from forefed.core.types import Params

OWN = {"kind": "fresh", "k": 32}
SHARED = {**OWN, "shared": True}
SLOPES: dict[str, dict[str, Any]] = {
    "float32": {"codec": "scalars"},
    "one byte": {"codec": "one_byte"},
    "one bit, mean": {"codec": "feedsign"},
    "one bit, vote": {"codec": "feedsign", "directions": SHARED, "aggregator": "median"},
    "float32, shared": {"codec": "scalars", "directions": SHARED},
}
SPARSE_1 = {"kind": "sparse", "ratio": 0.01}
SPARSE_01 = {"kind": "sparse", "ratio": 0.001}
WARM = {**SPARSE_01, "warm_up": 2}
DELTAS: dict[str, dict[str, Any]] = {
    "dense": {"codec": "dense"},
    "4 bits": {"codec": {"kind": "quantised", "bits": 4}},
    "4 bits, error feedback": {
        "codec": {"kind": "quantised", "bits": 4},
        "modifiers": ["error_feedback"],
    },
    "1 %": {"codec": SPARSE_1},
    "1 %, error feedback": {"codec": SPARSE_1, "modifiers": ["error_feedback"]},
    "1 %, DGC": {"codec": SPARSE_1, "modifiers": ["dgc"]},
    "0.1 %": {"codec": SPARSE_01},
    "0.1 %, error feedback": {"codec": SPARSE_01, "modifiers": ["error_feedback"]},
    "0.1 %, warm-up, error feedback": {"codec": WARM, "modifiers": ["error_feedback"]},
    "0.1 %, warm-up, DGC": {"codec": WARM, "modifiers": ["dgc"]},
}
RATES: dict[str, Sequence[float]] = {
    **dict.fromkeys(("float32", "one byte", "float32, shared"), (0.01, 0.03, 0.1, 0.3)),
    **dict.fromkeys(("one bit, mean", "one bit, vote"), (0.003, 0.01, 0.03, 0.1, 0.3)),
    **dict.fromkeys(("1 %, DGC", "0.1 %, warm-up, DGC"), (0.1, 0.3, 1.0)),
}
"""Clients' rates of "Slopes"; the server's of DGC, whose momentum makes steps longer."""


PLAIN = ", plain steps"
PLAIN_RATES = (0.03, 0.1, 0.3)


def client_of(method: str) -> dict[str, Any]:
    if not method.endswith(PLAIN):
        return {"kind": "adamw", "lr": RATE}
    rates = {r: kept("dense" + PLAIN, 0, 1.0, r)["held"] for r in PLAIN_RATES}
    return {"kind": "sgd", "lr": max(PLAIN_RATES, key=lambda r: rates[r])}


def run(method: str, seed: int, rate: float, plain: float | None = None) -> dict[str, float]:
    """Accuracies after the last round, and bytes per client and round."""
    clients, held, test = world(seed)
    start: Params = {"head.weight": torch.zeros(384, 6), "head.bias": torch.zeros(6)}
    if method in SLOPES:
        engine: dict[str, Any] = {"kind": "forward", "emulate": True}
        settings: dict[str, Any] = {
            "engine": {**engine, "micro_batch": "all"},
            "client": {
                **{"max_steps": 1, "batch_size": 64},
                "optimiser": {"kind": "sgd", "lr": rate},
            },
            **{"rounds": 60, "cohort": 10, "directions": OWN, **SLOPES[method]},
        }
    else:
        settings = {
            "engine": {"kind": "backprop", "micro_batch": 64},
            "client": {
                "batch_size": 64,
                "optimiser": {"kind": "sgd", "lr": plain} if plain else client_of(method),
            },
            "server": {"kind": "sgd", "lr": rate},
            "rounds": 100 if method.endswith(PLAIN) else 20,
            **{"cohort": 25, **DELTAS[method.removesuffix(PLAIN)]},
        }
    result = forefed.simulate(loss, start, clients, units=[tuple(start)], seed=seed, **settings)
    answers = sum(len(r.updates) for r in result.reports)
    return {
        "test": accuracy(result.params, test),
        "held": accuracy(result.params, held),
        "bytes": sum(r.bytes_up for r in result.reports) / answers,
    }


def kept(method: str, seed: int, rate: float, plain: float | None = None) -> dict[str, float]:
    """The cell, from compare/codecs.jsonl or run now. ``plain``: the clients' rate, being tuned."""
    place = [method, seed, rate, *([plain] if plain else [])]
    return cells.kept("codecs", place, lambda: run(method, seed, rate, plain))


def best(method: str) -> float:
    rates = RATES.get(method.removesuffix(PLAIN), (1.0,))
    return max(rates, key=lambda rate: kept(method, 0, rate)["held"])


def tables() -> Iterator[tuple[str, str]]:
    plain = [method + PLAIN for method in DELTAS]
    for title, methods in (("slopes", SLOPES), ("deltas", DELTAS), ("deltas" + PLAIN, plain)):
        body: list[Sequence[object]] = []
        for method in methods:
            rate = best(method)
            found = [kept(method, seed, rate) for seed in range(SEEDS)]
            accuracies = [f["test"] for f in found]
            size = np.mean([f["bytes"] for f in found])
            each = ", ".join(f"{100 * a:.1f}" for a in accuracies)
            row = [method, f"{rate:g}", f"{100 * np.mean(accuracies):.1f}", each, f"{size:.0f}"]
            body.append(row)
        head = ["what travels", "rate", "test accuracy", "by seed", "bytes up a client and round"]
        yield f"Codecs: {title}", markdown(head, body)


if __name__ == "__main__":
    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    for title, text in tables():
        print(f"\n{title}\n\n{text}", flush=True)
