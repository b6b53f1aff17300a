"""`python -m benchmarks.natural`: personal, common and local models of natural clients.

Two sets whose clients are people or institutions: the 40 authors of 20 Newsgroups with the most
posts (which of 20 groups a post is from), and the nine sources of MedQuAD, 180 answers of each
(which of 14 kinds of question an answer is to). Features are those of frozen MiniLM over the first
32 tokens (last layer, mean-pooled, standardised); on them the small model of `family`: a fixed
random layer with a LoRA of r = 8 beside it, tanh, and a head, trained with AdamW at 1e-2, which was
not tuned. Flow trains a second B beside the first. Every client is tested on a third of its own
rows, another one for each seed, and all clients train in each of 12 rounds.

`python -m benchmarks.natural waiting`: on the rows of both sets together, dealt out to 20 clients
(Dirichlet 1.0), by how much a move of FedBuff should count: judged by a third of the rows, which
nobody trains on. Clocks and time as in `family`.

Cells are kept in compare/natural.jsonl; what is there is not run again.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import forefed
from benchmarks import cells
from benchmarks.family import BODY, HEAD, PERSONAL, RATE, SEEDS, WAITING, WIDTH, fixed, reached
from benchmarks.first_model import read
from benchmarks.table import markdown
from forefed.core.hyper import BIAS, EMBEDDING, INSIDE, OUTSIDE, SHIFT, generated
from forefed.core.hyper import features as made_of
from forefed.core.keys import Key
from forefed.core.routes import GATE_IN, GATE_OUT, OWN, ROUTE, beside
from forefed.core.types import Params
from forefed.data.encoding import encode_texts
from forefed.data.partition import Dirichlet
from forefed.models.adapters import HeadOnly
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.run.simulate import Rows, Simulation
from forefed.start.features import features

RANK, ROUNDS, TOKENS, GATE = 8, 12, 32, 8
PARTS = tuple(f"m.{part}" for part in (OWN, GATE_IN, GATE_OUT, ROUTE))
HYPER = tuple(f"m.{part}" for part in (EMBEDDING, INSIDE, SHIFT, OUTSIDE, BIAS))
LENGTH, FEATURES = 64, 128
"""Of HyperFL's embedding and of what its network makes of it, as in the product."""
METHODS: dict[str, dict[str, Any]] = {
    **PERSONAL,
    "Flow": {"strategy": "flow"},
    "best of three": {"strategy": "best_of_three"},
    "HyperFL, r = 2": {"strategy": "hyperfl", "rank": 2},
    "HyperFL, r = 8": {"strategy": "hyperfl"},
}
SETS = {"20 Newsgroups, 40 authors": "newsgroups", "MedQuAD, 9 sources": "medquad"}


def texts(name: str) -> list[tuple[str, str, str]]:
    """(client, text, class) of every row that is used."""
    if name == "newsgroups":
        parts = [f"newsgroups20/{part}" for part in ("train", "test")]
        found = [r for part in parts for r in read(part, ("author", "subject", "text"), "label")]
        most = {author for author, _ in Counter(t[0] for t, _ in found).most_common(40)}
        return [(t[0], f"{t[1]} {t[2]}", label) for t, label in found if t[0] in most]
    by_source = defaultdict(list)
    for (source, text), kind in read("medquad/qa", ("source", "text"), "type"):
        if kind not in ("complications", "support groups"):  # 47 rows
            by_source[source].append((source, text, kind))
    some = {s: Key(0).fold(s).permutation(len(x))[:180] for s, x in by_source.items()}
    return [by_source[s][i] for s, at in some.items() for i in at]


@cache
def rows(name: str) -> dict[str, Tensor]:
    """Features "x" [N, 384], standardised, classes "y" [N] and clients "c" [N]."""
    file = cells.KEPT / f"natural_{name}.safetensors"
    if not file.exists():
        cells.KEPT.mkdir(exist_ok=True)
        found = texts(name)
        clients, classes = (sorted({row[i] for row in found}) for i in (0, 2))
        settings = ModelSettings(pooling="mean", layers="last", dtype="float32")
        task, words = load_task(settings, HeadOnly(), Key(0), tuple(classes))
        examples = encode_texts(words, [row[1] for row in found], TOKENS)
        x = features(task, task.params, examples, np.arange(len(examples)), 64)
        y, c = (
            torch.tensor([names.index(row[i]) for row in found])
            for names, i in ((classes, 2), (clients, 0))
        )
        save_file({"x": x.contiguous(), "y": y, "c": c}, file)
    found = load_file(file)
    return {**found, "x": (found["x"] - found["x"].mean(0)) / found["x"].std(0)}


def clients(name: str, seed: int) -> list[tuple[Rows, Rows]]:
    """Of every client two thirds of its rows to train on, and the others."""
    whole, split = rows(name), []
    for c in range(int(whole["c"].max()) + 1):
        mine = torch.where(whole["c"] == c)[0].numpy()
        mine = mine[Key(seed).fold("test rows", c).permutation(len(mine))]
        cut = len(mine) - len(mine) // 3
        split.append(
            [{n: whole[n][torch.from_numpy(at)] for n in "xy"} for at in (mine[:cut], mine[cut:])]
        )
    return [(train, test) for train, test in split]


@cache
def drawn(seed: int, rank: int) -> Tensor:
    """A [r, 384]."""
    return (2 * Key(seed).fold("A").uniform((rank, 384)) - 1) / 384**0.5


def first(seed: int, classes: int, strategy: str, rank: int) -> Params:
    head = {HEAD[0]: torch.zeros(WIDTH, classes), HEAD[1]: torch.zeros(classes)}
    if strategy == "hyperfl":
        inside = Key(seed).fold("inside").normal((FEATURES, LENGTH)) / LENGTH**0.5
        made = torch.zeros(WIDTH * rank, FEATURES), torch.zeros(WIDTH * rank)
        parts = (torch.zeros(LENGTH), inside, torch.zeros(FEATURES), *made)
        return {**dict(zip(HYPER, parts, strict=True)), **head}
    start: Params = {BODY[0]: drawn(seed, rank), BODY[1]: torch.zeros(WIDTH, rank), **head}
    if strategy != "flow":
        return start
    gate = Key(seed).fold("gate").normal((GATE, 384)) / 384**0.5
    more = (torch.zeros(WIDTH, rank), gate, torch.zeros(GATE + 1), torch.zeros(3))
    return {**start, **dict(zip(PARTS, more, strict=True))}


def logits(params: Params, x: Tensor, base: Tensor, seed: int) -> Tensor:
    if HYPER[0] in params:
        rank = len(params[HYPER[-1]]) // WIDTH
        f_w = made_of(*(params[n] for n in HYPER[:3]))
        b = generated(f_w, params[HYPER[3]], params[HYPER[4]], rank)
        z = x @ base.T + 2 * (x @ drawn(seed, rank).T) @ b.T
        return torch.tanh(z) @ params[HEAD[0]] + params[HEAD[1]]
    low = x @ params[BODY[0]].T
    z = x @ base.T + 2 * low @ params[BODY[1]].T
    if PARTS[0] in params:
        z = z + 2 * beside(
            x, low, params[BODY[1]], {n.removeprefix("m."): params[n] for n in PARTS}
        )
    return torch.tanh(z) @ params[HEAD[0]] + params[HEAD[1]]


def simulated(
    seed: int,
    name: str,
    shares: list[Rows],
    strategy: str = "fedavg",
    rank: int = RANK,
    rounds: int = ROUNDS,
    client: dict[str, Any] | None = None,
    **settings: Any,
) -> Simulation:
    base = fixed(seed)

    def loss(params: Params, batch: Rows) -> Tensor:
        said = logits(params, batch["x"], base, seed)
        return torch.nn.functional.cross_entropy(said, batch["y"])

    start = first(seed, int(rows(name)["y"].max()) + 1, strategy, rank)
    step = {"kind": "adamw", "lr": RATE, "head_lr": RATE}
    return forefed.simulate(
        loss,
        start,
        shares,
        strategy=strategy,
        units=[tuple(n for n in start if n not in HEAD), HEAD],
        head=HEAD,
        rounds=rounds,
        seed=seed,
        client={"batch_size": 16, "optimiser": step, **(client or {})},
        **settings,
    )


def run(name: str, method: str, seed: int) -> dict[str, Any]:
    own = clients(name, seed)
    found = simulated(seed, name, [train for train, _ in own], **METHODS[method])
    base = fixed(seed)

    def right(params: Params, test: Rows, among: Tensor | None = None) -> float:
        said = logits(params, test["x"], base, seed)
        if among is not None:  # as `sharing = "local_labels"` answers
            said = said.index_fill(1, torch.unique(among), 1e4) - 1e4 + said
        return float((said.argmax(1) == test["y"]).double().mean())

    n = [len(test["y"]) for _, test in own]
    mine = [right(found.own(i), test) for i, (_, test) in enumerate(own)]
    common = [right(found.params, test) for _, test in own]
    local = [right(found.params, test, train["y"]) for train, test in own]
    return {
        "local": float(np.average(local, weights=n)),
        "own": float(np.average(mine, weights=n)),
        "common": float(np.average(common, weights=n)),
        "worst": min(mine),
        "up": int(np.mean([r.bytes_up for r in found.reports]) / len(own)),
        "rows": sum(n),
    }


def kept(name: str, method: str, seed: int) -> dict[str, Any]:
    """The cell, from compare/natural.jsonl or run now."""
    made = waiting if method in WAITING else run
    return cells.kept("natural", [name, method, seed], lambda: made(name, method, seed))


def waiting(name: str, method: str, seed: int) -> dict[str, Any]:
    """20 clients, 10 at work, 30 % of them ten times as slow; accuracy on held-out rows by time."""
    whole = rows(name)
    order = torch.from_numpy(Key(seed).fold("held out").permutation(len(whole["y"])))
    held, left = order[: len(order) // 3], order[len(order) // 3 :]
    train = {n: whole[n][left] for n in "xy"}
    split = Dirichlet(clients=20, alpha=1.0, min_size=8).split(
        train["y"].numpy(), None, Key(seed).fold("clients")
    )
    mine = [torch.from_numpy(np.asarray(split.rows(i))) for i in range(20)]
    curve: list[tuple[float, float]] = []

    def after(state: Any, report: Any) -> None:
        said = logits(state.params, whole["x"][held], fixed(seed), seed).argmax(1)
        right = float((said == whole["y"][held]).double().mean())
        curve.append((report.metrics["clock"], right))

    shares: list[Rows] = [{n: x[some] for n, x in train.items()} for some in mine]
    settings = {**WAITING[method], "cohort": 10, "on_round": after}
    simulated(seed, name, shares, **settings)
    return {"curve": curve}


def tables() -> Iterator[tuple[str, str]]:
    for title, name in SETS.items():
        body = []
        for method in METHODS:
            found = [kept(name, method, s) for s in range(SEEDS)]
            mean = {
                x: np.mean([f[x] for f in found]) for x in ("own", "common", "worst", "up", "local")
            }
            by_seed = ", ".join(f"{f['own']:.3f}"[1:] for f in found)
            shown = [f"{mean[x]:.3f}"[1:] for x in ("own", "common", "local", "worst")]
            body.append([method, shown[0], by_seed, *shown[1:], f"{mean['up'] / 1e3:.1f}"])
        heads = ["method", "own model", "by seed", "common", "own classes only", "worst", "kB up"]
        yield f"{title}, {SEEDS} seeds", markdown(heads, body)


def waiting_tables() -> Iterator[tuple[str, str]]:
    for title, name in SETS.items():
        curves = {n: [kept(name, n, s)["curve"] for s in range(SEEDS)] for n in WAITING}
        yield f"{title}: who waits for slow clients", reached(curves)


if __name__ == "__main__":
    import sys

    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    named = WAITING if sys.argv[1:] == ["waiting"] else METHODS
    only = sys.argv[1:] if named is METHODS and len(sys.argv) > 1 else named
    for seed in range(SEEDS):
        for name in SETS.values():
            for method in only:
                print(name, method, seed, str(kept(name, method, seed))[:200], flush=True)
    for title, table in (waiting_tables if named is WAITING else tables)():
        print(f"\n{title}\n\n{table}")
