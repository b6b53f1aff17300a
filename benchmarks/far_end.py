"""`python -m benchmarks.far_end [PART]`: what stands at the far end, on real rows.

Heads over features of frozen MiniLM (last layer, mean-pooled, standardised) of TREC, as in
benchmarks/robust.py, and of SST-2 (2,500 training rows, of which 500 are held out, and the 872 of
the dev file, 32 tokens). Rates were chosen on the held-out rows of the first seed. Three seeds.

byte    one byte a slope and float32 on SST-2; settings as in benchmarks/codecs.py (TREC).
tpsgd   two hidden layers (128, 64) by projected labels, by backprop and at rest; a linear head.
        Five clients, 15 rounds of one epoch of batches of 64 by plain steps. TREC.

Cells are kept in compare/far_end.jsonl; what is there is not run again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import forefed
from benchmarks import cells, codecs, robust
from benchmarks.first_model import read
from benchmarks.table import markdown
from forefed.core.keys import Key
from forefed.core.types import Batch, Params
from forefed.data.encoding import encode_texts
from forefed.data.partition import Dirichlet
from forefed.models.adapters import HeadOnly
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.start.features import features

SEEDS, CLASSES = 3, {"trec": 6, "sst2": 2}
Rows = dict[str, Tensor]
World = tuple[tuple[Rows, ...], Rows, Rows]


@cache
def sst2(part: str) -> Rows:
    file = cells.KEPT / f"far_end_{part}.safetensors"
    if not file.exists():
        cells.KEPT.mkdir(exist_ok=True)
        some = read(f"sst2/{part}", ("text",), "label")
        some = [some[i] for i in Key(0).fold(part).permutation(len(some))[:2500]]
        settings = ModelSettings(pooling="mean", layers="last", dtype="float32")
        task, words = load_task(settings, HeadOnly(), Key(0), ("0", "1"))
        examples = encode_texts(words, [t[0] for t, _ in some], 32)
        x = features(task, task.params, examples, np.arange(len(examples)), 64)
        save_file({"x": x, "y": torch.tensor([int(label) for _, label in some])}, file)
    return load_file(file)


@cache
def world(name: str, seed: int, clients: int = 50) -> World:
    """Dirichlet 1.0; fewer clients have the rows of several."""
    if name == "trec":
        shares, held, test = robust.world(seed)
    else:
        train, dev = sst2("train"), sst2("dev")
        order = torch.from_numpy(Key(seed).fold("held out").permutation(len(train["y"])))
        mean, std = train["x"][order[500:]].mean(0), train["x"][order[500:]].std(0)

        def of(part: Rows, some: Tensor) -> Rows:
            return {"x": (part["x"][some] - mean) / std, "y": part["y"][some]}

        whole, held = of(train, order[500:]), of(train, order[:500])
        test = of(dev, torch.arange(len(dev["y"])))
        split = Dirichlet(clients=50, alpha=1.0, min_size=2)
        dealt = split.split(whole["y"].numpy(), None, Key(seed).fold("clients"))
        mine = [torch.from_numpy(np.asarray(dealt.rows(i))) for i in range(50)]
        shares = tuple({n: x[some] for n, x in whole.items()} for some in mine)
    joined = [
        {n: torch.cat([c[n] for c in shares[i::clients]]) for n in ("x", "y")}
        for i in range(clients)
    ]
    return tuple(joined), held, test


def zero(name: str, features: int = 384) -> Params:
    size = CLASSES[name]
    return {"head.weight": torch.zeros(features, size), "head.bias": torch.zeros(size)}


def scores(params: Params, held: Rows, test: Rows) -> dict[str, Any]:
    return {"test": robust.accuracy(params, test), "held": robust.accuracy(params, held)}


def byte(method: str, seed: int, rate: float) -> dict[str, Any]:
    clients, held, test = world("sst2", seed)
    start = zero("sst2")
    result = forefed.simulate(
        robust.loss,
        start,
        clients,
        units=[tuple(start)],
        seed=seed,
        rounds=60,
        cohort=10,
        engine={"kind": "forward", "emulate": True, "micro_batch": "all"},
        client={"max_steps": 1, "batch_size": 64, "optimiser": {"kind": "sgd", "lr": rate}},
        directions=codecs.OWN,
        **codecs.SLOPES[method],
    )
    up = sum(r.bytes_up for r in result.reports) / sum(len(r.updates) for r in result.reports)
    return {**scores(result.params, held, test), "bytes": up}


WIDTHS = (128, 64)


def tpsgd(method: str, seed: int, rate: float) -> dict[str, Any]:
    """``METHOD, SET``; ``rate`` of hidden layers (of "linear", of it)."""
    way, name = method.split(", ")
    clients, held, test = world(name, seed, 5)
    named = [{"x": c["x"], "labels": c["y"]} for c in clients]
    target = forefed.TargetProjection(384, WIDTHS, CLASSES[name])
    linear = forefed.TargetProjection(384, (), CLASSES[name])
    made = linear if way == "linear" else target

    def backprop(params: Params, batch: Batch) -> Tensor:
        x = batch["x"]
        for i in range(len(WIDTHS)):
            x = torch.tanh(x @ params[f"{i}.weight"].T + params[f"{i}.bias"])
        weight, bias = made.head
        logits = x @ params[weight].T + params[bias]
        return torch.nn.functional.cross_entropy(logits, batch["labels"])

    optimiser = {"kind": "sgd", "lr": 0.0 if way == "at rest" else rate, "head_lr": 0.1}
    if way == "linear":
        optimiser = {"kind": "sgd", "lr": rate}
    result = forefed.simulate(
        backprop if way == "backprop" else made,
        made.first(Key(seed)),
        named,
        head=() if way == "linear" else made.head,
        strategy="fedavg",
        rounds=15,
        seed=seed,
        client={"batch_size": 64, "optimiser": optimiser},
    )

    def right(part: Rows) -> float:
        said = made.logits(result.params, part["x"]).argmax(1)
        return float((said == part["y"]).double().mean())

    return {"test": right(test), "held": right(held)}


PARTS: Mapping[str, tuple[Any, Mapping[str, Sequence[float]]]] = {
    "byte": (byte, dict.fromkeys(("float32", "one byte"), (0.01, 0.03, 0.1))),
    "tpsgd": (
        tpsgd,
        {
            f"{way}, {name}": (0.01,) if way == "at rest" else (0.01, 0.03, 0.1, 0.3, 1.0)
            for name in ("trec",)
            for way in ("linear", "at rest", "tpSGD", "backprop")
        },
    ),
}


def table(part: str) -> str:
    run, methods = PARTS[part]

    def kept(method: str, seed: int, rate: float) -> dict[str, Any]:
        return cells.kept("far_end", [part, method, seed, rate], lambda: run(method, seed, rate))

    body: list[Sequence[object]] = []
    for method, rates in methods.items():
        rate = max(rates, key=lambda r: kept(method, 0, r)["held"])
        found = [kept(method, seed, rate) for seed in range(SEEDS)]
        tests = [100 * f["test"] for f in found]
        beside = [f"{n} {found[0][n]}" for n in ("bytes",) if n in found[0]]
        each = ", ".join(f"{x:.1f}" for x in tests)
        body.append([method, f"{rate:g}", f"{np.mean(tests):.1f}", each, "; ".join(beside)])
    return markdown(["way", "rate", "test accuracy", "by seed", "of seed 0"], body)


def tables(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for part in parts:
        yield part, table(part)


if __name__ == "__main__":
    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    torch.set_num_threads(1)
    for title, text in tables(sys.argv[1:] or [*PARTS]):
        print(f"\n{title}\n\n{text}", flush=True)
