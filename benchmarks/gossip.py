"""`python -m benchmarks.gossip`: what it costs to have no server, on a head over frozen features.

TREC as in benchmarks/robust.py (MiniLM, 384 features, 50 nodes, Dirichlet 1.0, 500 training rows
held out, three seeds), from a head of zeros: one local epoch of AdamW in every round of all nodes,
the rate that was chosen there for the star. Rounds to the goal: the first whose held-out accuracy
is at most one point below the star's after ``ROUNDS``. Nodes: test accuracy of the worst one and of
the mean model. Lies: a fifth of the nodes sends what the attack makes of all honest models.

Latecomer: five peers of a log (federation/peer.py) with the rows of ten clients each, one byte a
slope, 16 signs, one step on 64 rows in each of 200 rounds; what a sixth log is given, and what it
costs to do the rounds.

Cells are kept in compare/gossip.jsonl; what is there is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import forefed
from benchmarks import cells
from benchmarks.robust import RATE, accuracy, loss, world
from benchmarks.table import markdown
from forefed.core import trees
from forefed.core.types import Params
from forefed.federation.adversary import Adversary
from forefed.federation.chains import SharedLog, decode_given, encode_given
from forefed.federation.peer import Fold
from forefed.federation.star import RoundReport, RunState
from forefed.run.simulate import star_over

ROUNDS, SEEDS = 12, 3
STAR = "star"
GRAPHS: dict[str, dict[str, Any]] = {
    STAR: {},
    "full": {"graph": "full"},
    "exponential": {"graph": "exponential"},
    "exponential, 2 steps": {"graph": "exponential", "steps": 2},
    "random, 4 neighbours": {"graph": "random_regular"},
    "grid": {"graph": "grid"},
    "ring": {"graph": "ring"},
}
NNA = {"kind": "nna", "pivot": "own", "f": 0.25}
RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "nna": {"aggregator": NNA},
    "nna, momentum": {"aggregator": NNA, "modifiers": ["momentum"]},
    "centred clipping": {"aggregator": "centred_clipping"},
    "trimmed mean": {"aggregator": {"kind": "trimmed_mean", "f": 0.25}},
}
LIES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "sign flip x 10": {"kind": "sign_flip", "scale": 10},
    "IPM 0.5": {"kind": "ipm"},
    "LIE": {"kind": "lie"},
    "Min-Max": {"kind": "min_max"},
    "labels": {"kind": "label_flip"},
}
SHARE = 0.2


def run(graph: str, rule: str, lie: str, seed: int) -> dict[str, Any]:
    """Accuracies after every round, and of every honest node at the end."""
    clients, held, test = world(seed)
    start: Params = {"head.weight": torch.zeros(384, 6), "head.bias": torch.zeros(6)}
    curve: list[float] = []
    settings: dict[str, Any] = {**RULES[rule]}
    if graph != STAR:
        settings["topology"] = {"kind": "gossip", **GRAPHS[graph]}
    attack = LIES[lie]
    if attack is not None:
        settings["attack"] = {**attack, "hostile": SHARE}

    def after(state: RunState, report: RoundReport) -> None:
        curve.append(accuracy(state.params, held))

    result = forefed.simulate(
        loss,
        start,
        clients,
        units=[tuple(start)],
        rounds=ROUNDS,
        seed=seed,
        engine={"kind": "backprop", "micro_batch": 64},
        client={"batch_size": 64, "optimiser": {"kind": "adamw", "lr": RATE}},
        on_round=after,
        **settings,
    )
    transport = result.star.transport
    who = transport.who if isinstance(transport, Adversary) else frozenset()
    nodes = [accuracy(result.own(c), test) for c in range(len(clients)) if c not in who]
    return {
        "held": curve,
        "test": accuracy(result.params, test),
        "worst": min(nodes),
        "nodes": float(np.mean(nodes)),
        "bytes_up": result.reports[-1].bytes_up / len(clients),
    }


def kept(graph: str, rule: str = "mean", lie: str = "none", seed: int = 0) -> dict[str, Any]:
    """The cell, from compare/gossip.jsonl or run now."""
    return cells.kept("gossip", [graph, rule, lie, seed], lambda: run(graph, rule, lie, seed))


def shown(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def graphs(seeds: int = SEEDS) -> str:
    rows = []
    for graph in GRAPHS:
        cells = [kept(graph, seed=s) for s in range(seeds)]
        goals = [kept(STAR, seed=s)["held"][-1] - 0.01 for s in range(seeds)]
        reached = [
            next((i + 1 for i, x in enumerate(c["held"]) if x >= goal), None)
            for c, goal in zip(cells, goals, strict=True)
        ]
        rows.append(
            [
                graph,
                shown([c["test"] for c in cells]),
                shown([c["nodes"] for c in cells]),
                f"{min(c['worst'] for c in cells):.3f}",
                ", ".join("never" if r is None else str(r) for r in reached),
                f"{cells[0]['bytes_up'] / 1000:.0f} kB",
            ]
        )
    heads = [
        "graph",
        "mean model",
        "nodes, mean",
        "worst node",
        "rounds to the goal",
        "sent a node",
    ]
    return markdown(heads, rows)


def lies(rules: Sequence[str], seeds: int, graph: str = "full") -> str:
    """Honest nodes' mean accuracy on the test rows."""
    rows = []
    for lie in LIES:
        cells = [[kept(graph, rule, lie, s)["nodes"] for s in range(seeds)] for rule in rules]
        rows.append([lie, *(f"{c[0]:.3f}" if seeds == 1 else shown(c) for c in cells)])
    return markdown(["lies", *rules], rows)


def latecomer(peers: int = 5, rounds: int = 200) -> str:
    """Bytes and seconds of joining after the last round."""
    clients, _, test = world(0)
    start: Params = {"head.weight": torch.zeros(384, 6), "head.bias": torch.zeros(6)}
    names = clients[0].keys()
    shares = [
        {n: torch.cat([c[n] for c in clients[i::peers]]) for n in names} for i in range(peers)
    ]
    config = forefed.configure(
        base={
            **{"rounds": rounds, "cohort": peers, "strategy": "fedavg", "codec": "one_byte"},
            "engine": {"kind": "forward", "emulate": True, "micro_batch": "all"},
            "directions": {"k": 16},
            "client": {
                **{"max_steps": 1, "batch_size": 64},
                "optimiser": {"kind": "sgd", "lr": 0.3},
            },
            "partition": {"kind": "iid", "clients": peers},
            **{"start": "none", "guard": "none"},
        }
    )
    first = RunState(0, start)
    keys = [Ed25519PrivateKey.generate() for _ in range(peers)]

    def verify(author: int, data: bytes, signature: bytes) -> bool:
        keys[author].public_key().verify(signature, data)
        return True

    log, late = (SharedLog(bytes(32), peers, rounds, verify) for _ in range(2))
    early, joined = (
        Fold(star_over(config, loss, start, shares, [tuple(start)]), first) for _ in range(2)
    )
    for round in range(1, rounds + 1):
        for peer in range(peers):
            payload = early.contribution(log, peer, round)
            assert payload is not None
            log.append(peer, round, payload, keys[peer].sign)
    began, wall = time.process_time(), time.perf_counter()
    given = encode_given(log.run, log.missing(late.have()))
    late.take(decode_given(given, late.run))
    state = joined.state(late, rounds)
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    equal = trees.digest(state.params) == trees.digest(early.state(log, rounds).params)
    return (
        f"{len(given):,} bytes, {seconds:.2f} s of the processor ({wall:.1f} s by the clock), "
        f"equal digests: {equal}; test accuracy {accuracy(state.params, test):.3f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"a latecomer after 200 rounds of five peers: {latecomer()}\n", flush=True)
    print(graphs(), flush=True)
    print(f"\nfull graph, a fifth lies, one seed\n\n{lies([*RULES], 1)}", flush=True)
    print(f"\nthe same, {SEEDS} seeds\n\n{lies(['nna'], SEEDS)}", flush=True)
