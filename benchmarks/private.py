"""What privacy costs: accuracy against epsilon, on frozen MiniLM features of SST-2.

    FOREFED_DATA=... python -m benchmarks.private

Population: 6,920 training rows in 1,384 clients of five rows each (dealt out at random). The radius
is the median length of features of the standard library's docstrings, which are public; the clip
bound is what a gradient at zero can reach; the server's rate was chosen on the 872 development rows
without noise. Tested on the 1,821 test rows.

    example level   the head in closed form from noisy sums, one release
    client level    federated averaging of the head: 100 clients a round on average, drawn in
                    secret, 40 rounds of one local step, server momentum
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import forefed
from forefed.core.keys import Key, Secret
from forefed.core.types import Params
from forefed.data.encoding import encode_texts
from forefed.data.pydocs import read_docstrings
from forefed.models.load import load_tokenizer
from forefed.run import configure
from forefed.run.build import load_model
from forefed.run.simulate import Rows
from forefed.start import ClosedForm
from forefed.start.features import features
from forefed.start.private import private_sums, within
from forefed.start.solver import Solver
from forefed.start.sums import Sums
from forefed.start.targets import Classes

EPSILONS: tuple[float | None, ...] = (1.0, 2.0, 4.0, 8.0, None)
SEEDS = (0, 1, 2)
DELTA = 1e-5
CLIENTS, COHORT, ROUNDS = 1384, 100, 40


def rows_of(name: str) -> tuple[list[str], Tensor]:
    folder = Path(os.environ["FOREFED_DATA"]) / "sst2"
    with gzip.open(next(folder.glob(f"{name}*")), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [r["text"] for r in rows], torch.tensor([int(r["label"]) for r in rows])


def featured() -> dict[str, tuple[Tensor, Tensor]]:
    """Features and labels of every split, and of public texts ("public")."""
    config = configure(sets=["strategy=fedavg", "model=minilm", "model.pooling=mean"])
    task, tokenizer = load_model(config, ("negative", "positive")), load_tokenizer(config.model)
    splits = {name: rows_of(name) for name in ("train", "dev", "test")}
    public = [d.text for d in read_docstrings()[:500]]
    splits["public"] = (public, torch.zeros(len(public), dtype=torch.int64))
    found = {}
    for name, (texts, labels) in splits.items():
        examples = encode_texts(tokenizer, texts, 64, None)
        x = features(task, task.params, examples, np.arange(len(texts)), 32)
        found[name] = (x, labels)
    return found


def accuracy(weight_CD: Tensor, bias_C: Tensor, x: Tensor, labels: Tensor) -> float:
    said = (x.double() @ weight_CD.double().T + bias_C.double()).argmax(1)
    return float((said == labels).double().mean())


def solved(
    data: dict[str, tuple[Tensor, Tensor]], eps: float | None, seed: int, radius: float
) -> float:
    settings: dict[str, Any] = {"radius": radius, "delta": DELTA}
    settings |= {"solver": "discriminant", "regularisation": 0.1}
    start = ClosedForm.model_validate({**settings, "target_epsilon": eps})
    classes = Classes(("negative", "positive"))
    x_ND, labels = within(data["train"][0], radius), data["train"][1]
    total = Sums.of(x_ND, classes.of(labels.numpy()))
    if eps is not None:
        total, _ = private_sums(start, classes, total, Secret.rehearsed(seed))
    head = Solver.of(total).discriminant(0.1)
    return accuracy(head.weight_CD, head.bias_C, *data["test"])


def loss(params: Params, batch: Rows) -> Tensor:
    logits = batch["x"] @ params["weight"].T + params["bias"]
    return torch.nn.functional.cross_entropy(logits, batch["y"])


def averaged(
    data: dict[str, tuple[Tensor, Tensor]],
    eps: float | None,
    seed: int,
    radius: float,
    split: str = "test",
    lr: float = 1.0,
    clip: float = 1.0,
) -> float:
    x, y = data["train"]
    x = within(x, radius).float() / radius
    dealt = Key(seed).fold("clients").permutation(len(y)).reshape(CLIENTS, -1)
    clients: list[Rows] = [{"x": x[rows], "y": y[rows]} for rows in dealt.tolist()]
    noise: dict[str, Any] = {"noise_multiplier": 0} if eps is None else {"target_epsilon": eps}
    width = x.shape[1]
    found = forefed.simulate(
        loss,
        {"weight": torch.zeros(2, width), "bias": torch.zeros(2)},
        clients,
        units=[("weight", "bias")],
        strategy="fedavg",
        rounds=ROUNDS,
        cohort=COHORT,
        seed=seed,
        select="poisson",
        modifiers=[{"kind": "dp_client", "clip": clip, "delta": DELTA, **noise}],
        client={"optimiser": {"kind": "sgd", "lr": 1.0}, "batch_size": "all"},
        server={"kind": "sgd", "lr": lr, "momentum": 0.9},
    )
    tested = within(data[split][0], radius).float() / radius
    return accuracy(found.params["weight"], found.params["bias"], tested, data[split][1])


def main() -> None:
    data = featured()
    lengths = torch.linalg.vector_norm(data["public"][0], dim=1)
    radius = float(lengths.median())
    print(f"radius {radius:.3f} (median length of 500 docstrings' features)", flush=True)
    tried = {lr: averaged(data, None, 0, radius, "dev", lr) for lr in (1.0, 3.0, 10.0)}
    print(f"development rows, without noise, by server rate: {tried}", flush=True)
    best = max(tried, key=lambda lr: tried[lr])
    print("| unit | method | " + " | ".join(f"epsilon {e or 'none'}" for e in EPSILONS) + " |")
    print("|---|---|" + "---|" * len(EPSILONS))
    for unit, method, play in (
        ("example", "closed form", lambda e, s: solved(data, e, s, radius)),
        ("client", "FedAvg", lambda e, s: averaged(data, e, s, radius, "test", best)),
    ):
        cells = []
        for eps in EPSILONS:
            values = [play(eps, seed) for seed in SEEDS]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            print(unit, method, eps, values, flush=True)
        print(f"| {unit} | {method} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
