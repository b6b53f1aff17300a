"""What noise leaves of adapters: FFA-LoRA and SPRY's slopes against the head in closed form.

    FOREFED_DATA=... python -m benchmarks.private_adapters

TREC, 384 features of frozen MiniLM as in ``benchmarks.robust``, cut to 3.24 (median of docstrings,
``benchmarks.private_shares``) and divided by it. The model is what a classification head's dense
layer is with an adapter: logits = W (x + B A x) + b, A drawn and frozen (FFA-LoRA, r = 8), B, W, b
trained from zero. 500 of the 5,452 training rows chose the rates, without noise; 500 test rows.

    client level    990 clients of five rows, 60 a round on average, drawn in secret; 20 rounds of
                    one step on all five; the server's noise
    example level   10 clients of 495 rows; 20 steps on batches of a twentieth, drawn in secret;
                    every client's own noise (the closed form: the server's, once)

FFA-LoRA sends what B and the head moved by; SPRY (without its split) 16 slopes along directions
that all share. Cells
are kept in compare/private_adapters.jsonl, seed after seed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import forefed
from benchmarks import cells
from benchmarks.robust import HELD_OUT, SEEDS, rows
from benchmarks.table import markdown
from forefed.core.keys import Key, Secret
from forefed.core.types import Params
from forefed.run.simulate import Rows
from forefed.start import ClosedForm
from forefed.start.private import private_sums, within
from forefed.start.solver import Solver
from forefed.start.sums import Sums
from forefed.start.targets import Classes

EPSILONS: tuple[float | None, ...] = (1.0, 2.0, 4.0, 8.0, None)
DELTA, RADIUS, RANK, ROUNDS, K = 1e-5, 3.24, 8, 20, 16
CLASSES = Classes(tuple("abcdef"))
UNITS = {"client": 990, "example": 10}
"""Clients, by what is hidden."""
METHODS = ("FFA-LoRA", "SPRY slopes")
RATES = {"FFA-LoRA": (3.0, 10.0), "SPRY slopes": (3.0, 10.0)}


@cache
def parts(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Features within the radius and classes: to train on, held out, to test on."""
    train, test = rows("train"), rows("test")
    order = torch.from_numpy(Key(seed).fold("held out").permutation(len(train["y"])))
    kept, held = order[HELD_OUT:], order[:HELD_OUT]
    kept = kept[: len(kept) // 990 * 990]

    def of(part: dict[str, Tensor], some: Tensor | slice) -> tuple[Tensor, Tensor]:
        return within(part["x"][some], RADIUS).float(), part["y"][some]

    return {"train": of(train, kept), "held": of(train, held), "test": of(test, slice(None))}


def down(seed: int) -> Tensor:
    return Key(seed).fold("A").normal((384, RANK)) / 384**0.5


def logits(params: Params, x: Tensor, a: Tensor) -> Tensor:
    return (x + (x @ a) @ params["up"]) @ params["head.weight"] + params["head.bias"]


def trained(
    method: str, unit: str, eps: float | None, seed: int, lr: float, split: str = "test"
) -> float:
    x, y = parts(seed)["train"]
    a, x = down(seed), x / RADIUS
    dealt = Key(seed).fold("clients").permutation(len(y)).reshape(UNITS[unit], -1)
    clients: list[Rows] = [{"x": x[mine], "y": y[mine]} for mine in dealt.tolist()]

    def loss(params: Params, batch: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(logits(params, batch["x"], a), batch["y"])

    noise: dict[str, Any] = {"noise_multiplier": 0} if eps is None else {"target_epsilon": eps}
    settings: dict[str, Any] = {
        "modifiers": [{"kind": f"dp_{unit}", "clip": 1.0, "delta": DELTA, **noise}],
        "server": {"kind": "sgd", "lr": 1.0, "momentum": 0.9},
    }
    step: dict[str, Any] = {"optimiser": {"kind": "sgd", "lr": lr}}
    if unit == "client":
        settings |= {"select": "poisson", "cohort": 60}
        # the update is what is cut, so it is as long as the gradient: the server has the rate
        settings["server"]["lr"], step["optimiser"]["lr"] = lr, 1.0
        step |= {"batch_size": "all", "max_steps": 1}
    else:
        step |= {"max_steps": 1, "sampler": {"kind": "poisson", "rate": 0.05}}
    if method == "SPRY slopes":
        settings |= {"strategy": "fedfgd", "codec": "scalars", "assign": "everything"}
        settings["directions"] = {"kind": "fresh", "k": K, "clamp": 0, "shared": True}
        settings["engine"] = {"kind": "forward", "emulate": True}
    start = {"up": torch.zeros(RANK, 384)}
    start |= {"head.weight": torch.zeros(384, 6), "head.bias": torch.zeros(6)}
    found = forefed.simulate(
        loss,
        start,
        clients,
        units=[tuple(start)],
        rounds=ROUNDS,
        seed=seed,
        client=step,
        **settings,
    ).params
    tested, right = parts(seed)[split]
    said = logits(found, tested / RADIUS, a).argmax(1)
    return float((said == right).double().mean())


def solved(eps: float | None, seed: int) -> float:
    """The head alone, in closed form; example level."""
    x, y = parts(seed)["train"]
    start = ClosedForm.model_validate(
        {
            **{"radius": RADIUS, "delta": DELTA, "target_epsilon": eps},
            **{"solver": "discriminant", "regularisation": 0.1},
        }
    )
    total = Sums.of(x, CLASSES.of(y.numpy()))
    if eps is not None:
        total, _ = private_sums(start, CLASSES, total, Secret.rehearsed(seed))
    head = Solver.of(total).discriminant(0.1)
    tested, right = parts(seed)["test"]
    said = (tested.double() @ head.weight_CD.T + head.bias_C).argmax(1)
    return float((said == right).double().mean())


def rate(method: str, unit: str) -> float:
    """The best on the held-out rows of the first seed, without noise."""

    def tried(lr: float) -> float:
        place = ["rate", method, unit, lr]
        run = lambda: {"held": trained(method, unit, None, 0, lr, "held")}  # noqa: E731
        return float(cells.kept("private_adapters", place, run)["held"])

    return max(RATES[method], key=tried)


def cell(method: str, unit: str, eps: float | None, seed: int) -> float:
    def run() -> dict[str, Any]:
        if method == "closed form":
            return {"test": solved(eps, seed)}
        return {"test": trained(method, unit, eps, seed, rate(method, unit))}

    place = [method, unit, eps or 0, seed]
    return float(cells.kept("private_adapters", place, run)["test"])


LINES = (("closed form", "example"), *((m, u) for u in ("client", "example") for m in METHODS))


def main() -> None:
    for seed in range(SEEDS):
        for method, unit in LINES:
            for eps in EPSILONS:
                print(seed, method, unit, eps, cell(method, unit, eps, seed), flush=True)
    body = []
    for method, unit in LINES:
        line: list[object] = [unit, method]
        for eps in EPSILONS:
            values = [cell(method, unit, eps, seed) for seed in range(SEEDS)]
            line.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        body.append(line)
    print(markdown(["hidden", "method", *(f"epsilon {e or 'none'}" for e in EPSILONS)], body))


if __name__ == "__main__":
    main()
