"""`python -m benchmarks.robust_start`: what lies in the start's sums cost, and what is left of it.

The clients and features of ``benchmarks.robust`` (TREC, 50 clients, frozen MiniLM), all 5,452
training rows; a quarter (12 of 50) lies in its sums; the head is the discriminant (0.1) of all
sums, and of those that are left once ``start.contradicting`` has looked (f = 0.25). Three seeds.

Then rounds from such a head: 24 % flip the labels of their sums and attack four rounds (rate 3e-3,
DnC over cut vectors; who is hostile in a round is drawn anew); a round is taken where the loss of
500 held-out rows falls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

import forefed
from benchmarks.robust import ATTACKS, CLIENTS, RECOMMENDED, RULES, SEEDS, F, loss, rows, world
from benchmarks.robust import accuracy as head_accuracy
from benchmarks.table import markdown
from forefed.aggregate.aggregator import share_of
from forefed.core.keys import Key
from forefed.data.partition import Dirichlet
from forefed.start.contradicting import contradicting
from forefed.start.solver import Solver
from forefed.start.sums import Sums
from forefed.start.targets import Classes

CLASSES = Classes(tuple("abcdef"))
HOSTILE = 12
Lie = Callable[[Tensor, Tensor], Sums]


def sums(x_ND: Tensor, y_N: Tensor) -> Sums:
    return Sums.of(x_ND, CLASSES.of(y_N.numpy()))


def times(many: int, told: Sums) -> Sums:
    return Sums(*(many * part for part in vars(told).values()))


def drowning() -> Lie:
    """Features with noise of three times the usual size along what tells classes apart."""
    train = rows("train")
    head = Solver.of(sums(train["x"], train["y"])).discriminant(0.1)
    along = torch.linalg.svd(head.weight_CD, full_matrices=False).Vh[:5].float()
    return lambda x, y: sums(x + 3 * Key(2).normal((len(x), 5)) @ along, y)


def lies() -> dict[str, Lie]:
    return {
        "none": sums,
        "labels flipped": lambda x, y: sums(x, (y + 1) % 6),
        "labels flipped, times 10": lambda x, y: times(10, sums(x, (y + 1) % 6)),
        "honest, times 10": lambda x, y: times(10, sums(x, y)),
        "one class for all rows": lambda x, y: sums(x, 0 * y),
        "labels drawn": lambda x, y: sums(
            x, torch.from_numpy(Key(len(x)).permutation(6 * len(x))[: len(x)] % 6)
        ),
        "features mirrored": lambda x, y: sums(2 * x.mean(0) - x, y),
        "features times 3, flipped": lambda x, y: sums(3 * x, (y + 1) % 6),
        "what tells classes apart drowned": drowning(),
    }


def accuracy(total: Sums) -> float:
    head, test = Solver.of(total).discriminant(0.1), rows("test")
    said = (test["x"].double() @ head.weight_CD.T + head.bias_C).argmax(1)
    return float((said == test["y"]).double().mean())


def cell(lie: Lie, alpha: float, seed: int) -> tuple[float, float, int, int]:
    """Accuracy of all sums and of those that are left; liars and honest clients left out."""
    train = rows("train")
    least = 10 if alpha >= 1 else 0
    shares = Dirichlet(clients=CLIENTS, alpha=alpha, min_size=least).split(
        train["y"].numpy(), None, Key(seed).fold("clients")
    )
    each = {}
    for client in range(CLIENTS):
        mine = torch.from_numpy(np.asarray(shares.rows(client)))
        told = lie if client < HOSTILE else sums
        if len(mine):
            each[client] = told(train["x"][mine], train["y"][mine])
    total = reduce(Sums.plus, each.values())
    out = contradicting(list(each), each.__getitem__, CLASSES, share_of(F, len(each)))
    left = reduce(lambda t, c: t.plus(each[c], -1), out, total)
    found = sum(c < HOSTILE for c in out)
    return accuracy(total), accuracy(left), found, len(out) - found


def after_rounds(attack: str, seed: int) -> float:
    """Accuracy of the solved head after the rounds."""
    clients, held, test = world(seed)
    settings: dict[str, Any] = {}
    if attack in ATTACKS:
        settings = {"attack": {**ATTACKS[attack], "hostile": 0.24}}
    who = forefed.configure(base=settings).attack.who(CLIENTS, Key(seed)) if settings else ()
    each = {
        i: sums(c["x"], (c["y"] + 1) % 6 if i in who else c["y"]) for i, c in enumerate(clients)
    }
    out = contradicting(list(each), each.__getitem__, CLASSES, share_of(F, CLIENTS))
    head = Solver.of(reduce(Sums.plus, (s for i, s in each.items() if i not in out)))
    solved = head.discriminant(0.1)
    params = {"head.weight": solved.weight_CD.T.float().contiguous()}
    params["head.bias"] = solved.bias_C.float()
    for number in range(4):
        tried = forefed.simulate(
            loss,
            params,
            clients,
            units=[tuple(params)],
            rounds=1,
            seed=100 * seed + number,
            engine={"kind": "backprop", "micro_batch": 64},
            client={"batch_size": 64, "optimiser": {"kind": "adamw", "lr": 3e-3}},
            **RULES[RECOMMENDED],
            **settings,
        ).params
        if float(loss(tried, held)) < float(loss(params, held)):
            params = tried
    return head_accuracy(params, test)


def main() -> None:
    alphas = (1.0, 0.1, 100.0)
    body = []
    for name, lie in lies().items():
        line: list[object] = [name]
        for alpha in alphas:
            plain, left, found, wrong = np.mean([cell(lie, alpha, s) for s in range(SEEDS)], 0)
            line.append(f"{plain:.3f}, {left:.3f} ({found:.1f}, {wrong:.1f})".replace("0.", ".", 2))
        print(line, flush=True)
        body.append(line)
    print(markdown(["lie", *(f"Dirichlet {alpha:g}" for alpha in alphas)], body))
    for attack in ("none", *ATTACKS):
        print(attack, [after_rounds(attack, seed) for seed in range(SEEDS)], flush=True)


if __name__ == "__main__":
    main()
