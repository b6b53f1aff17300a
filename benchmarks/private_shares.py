"""What it costs that every client adds its share of the start's noise: TREC, 50 clients.

    FOREFED_DATA=... python -m benchmarks.private_shares

The clients and features of ``benchmarks.robust`` (384 features of frozen MiniLM, Dirichlet 1.0),
all 5,452 training rows; the discriminant (0.1) of noisy sums, tested on the 500 test rows. The
radius is the median length of features of the standard library's docstrings, which are public.
Columns: who adds the noise, and for clients the least number in a sum (``channel.min_group``), of
which one may collude. Every client makes a share; they are summed as whole numbers, as in a run.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.robust import CLIENTS, SEEDS, rows
from benchmarks.table import markdown
from forefed.core.keys import Key, Secret
from forefed.data.encoding import encode_texts
from forefed.data.partition import Dirichlet
from forefed.data.pydocs import read_docstrings
from forefed.models.adapters import HeadOnly
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.start import ClosedForm
from forefed.start.features import features
from forefed.start.private import private_sums, within
from forefed.start.shares import Shares
from forefed.start.solver import Solver
from forefed.start.sums import Sums
from forefed.start.targets import Classes

CLASSES = Classes(tuple("abcdef"))
EPSILONS = (1.0, 2.0, 4.0, 8.0)
LEAST = (49, 40, 25, 5)


def public_radius() -> float:
    settings = ModelSettings(pooling="mean", layers="last", dtype="float32")
    task, words = load_task(settings, HeadOnly(), Key(0), tuple("abcdef"))
    examples = encode_texts(words, [d.text for d in read_docstrings()[:300]], 64)
    x = features(task, task.params, examples, np.arange(len(examples)), 64)
    return float(torch.linalg.vector_norm(x.double(), dim=1).median())


def accuracy(total: Sums) -> float:
    head, test = Solver.of(total).discriminant(0.1), rows("test")
    said = (test["x"].double() @ head.weight_CD.T + head.bias_C).argmax(1)
    return float((said == test["y"]).double().mean())


def clients(seed: int, x_ND: Tensor, y_N: Tensor) -> list[Sums]:
    shares = Dirichlet(clients=CLIENTS, alpha=1.0, min_size=10).split(
        y_N.numpy(), None, Key(seed).fold("clients")
    )
    mine = [torch.from_numpy(np.asarray(shares.rows(i))) for i in range(CLIENTS)]
    return [Sums.of(x_ND[some], CLASSES.of(y_N[some].numpy())) for some in mine]


def main() -> None:
    radius, train = public_radius(), rows("train")
    print(f"radius {radius:.3f}", flush=True)
    x_ND = within(train["x"], radius)
    worlds = [clients(seed, x_ND, train["y"]) for seed in range(SEEDS)]
    totals = [reduce(Sums.plus, one) for one in worlds]
    print("no noise, cut", [accuracy(t) for t in totals], flush=True)
    body = []
    for eps in EPSILONS:
        settings: dict[str, Any] = {"radius": radius, "target_epsilon": eps}
        start = ClosedForm.model_validate({**settings, "noise_by": "clients"})
        found: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            secret = Secret.rehearsed(seed)
            one, _ = private_sums(start, CLASSES, totals[seed], secret)
            found.setdefault("the server", []).append(accuracy(one))
            for least in LEAST:
                shares = Shares(start, least - start.colluding)
                each = (
                    shares.added(sums, CLASSES, secret.fold("client", least, i))
                    for i, sums in enumerate(worlds[seed])
                )
                total = reduce(lambda a, b: {n: x + b[n] for n, x in a.items()}, each)
                sums, _ = shares.opened(total, CLIENTS, CLASSES, secret)
                found.setdefault(f"clients, {least} at least", []).append(accuracy(sums))
        print(eps, found, flush=True)
        cells = [f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in found.values()]
        body.append([f"{eps:g}", *(cell.replace("0.", ".") for cell in cells)])
    print(markdown(["epsilon", *found], body))


if __name__ == "__main__":
    main()
