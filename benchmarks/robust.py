"""`python -m benchmarks robust`: what every robust rule makes of every attack.

TREC (six classes), features of frozen MiniLM (last layer, mean-pooled, standardised) computed once;
the head is trained on them by FedAvg from zero, through ``forefed.simulate``: 50 clients, Dirichlet
1.0, all in every round, 8 rounds of one local epoch (AdamW, batches of 64). 500 of the 5,452
training rows are held out: rates were chosen on them, without an attack. Rules assume a quarter of
the clients hostile (f = 0.25), whatever the truth. Cosine: of the aggregate to the mean of the
honest updates, over the rounds.

Cells are kept in compare/robust.jsonl; what is there is not run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import forefed
from benchmarks import cells
from benchmarks.first_model import read
from benchmarks.table import markdown
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.data.encoding import encode_texts
from forefed.data.partition import Dirichlet
from forefed.federation.adversary import Adversary
from forefed.federation.report import RoundReport
from forefed.federation.star import RunState
from forefed.models.adapters import HeadOnly
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.start.features import features

CLIENTS, ROUNDS, SEEDS, HELD_OUT = 50, 8, 3, 500
RATE = 3e-2
SKEWED, ALIKE = 1.0, 100.0
"""Dirichlet concentrations."""

F = 0.25
RULES: dict[str, dict[str, Any]] = {
    "mean": {"aggregator": "mean"},
    "norm bound": {"aggregator": "norm_bound"},
    "median": {"aggregator": "median"},
    "trimmed mean": {"aggregator": {"kind": "trimmed_mean", "f": F}},
    "geometric median": {"aggregator": "geometric_median"},
    "centred clipping": {"aggregator": "centred_clipping"},
    "centred clipping, momentum": {"aggregator": "centred_clipping", "modifiers": ["momentum"]},
    "Krum": {"aggregator": {"kind": "krum", "f": F}},
    "Multi-Krum": {"aggregator": {"kind": "multi_krum", "f": F}},
    "Bulyan": {"aggregator": {"kind": "bulyan", "f": F}},
    "DnC": {"aggregator": {"kind": "dnc", "f": F}},
    "DnC, cut": {"aggregator": {"kind": "dnc", "f": F, "cut": 1.0}},
    "DnC, cut, past": {"aggregator": {"kind": "dnc", "f": F, "cut": 1.0, "past": True}},
    "spectral": {"aggregator": {"kind": "spectral", "f": F}},
    "nearest neighbours": {"aggregator": {"kind": "nna", "f": F}},
    "nearest mixing": {"aggregator": {"kind": "nnm", "f": F}},
    "MUD-HoG": {"aggregator": "mud_hog"},
}
ATTACKS: dict[str, dict[str, Any]] = {
    "sign flip": {"kind": "sign_flip"},
    "sign flip x 10": {"kind": "sign_flip", "scale": 10},
    "IPM 0.5": {"kind": "ipm"},
    "noise": {"kind": "noise"},
    "labels": {"kind": "label_flip"},
    "mimic": {"kind": "mimic"},
    "MPAF": {"kind": "mpaf"},
    "LIE": {"kind": "lie"},
    "STAT-OPT": {"kind": "stat_opt"},
    "DYN-OPT": {"kind": "dyn_opt"},
    "Min-Max": {"kind": "min_max"},
    "Min-Sum": {"kind": "min_sum"},
}
RECOMMENDED = "DnC, cut"
Column = tuple[float, str, float]
SEVERAL: tuple[Column, ...] = (
    (0.24, RECOMMENDED, SKEWED),
    (0.24, "mean", SKEWED),
    (0.1, RECOMMENDED, SKEWED),
    (0.2, RECOMMENDED, SKEWED),
    (0.24, "DnC", SKEWED),
    (0.24, RECOMMENDED, ALIKE),
)
"""Shares of hostile clients, rules and concentrations that are run with three seeds; at a fifth all
rules are run with one."""
ALL = 0.2


@cache
def rows(part: str) -> dict[str, Tensor]:
    """Features "x" [N, 384] and classes "y" [N] of the training or the test rows."""
    file = cells.KEPT / f"robust_{part}.safetensors"
    if not file.exists():
        cells.KEPT.mkdir(exist_ok=True)
        some = read(f"trec/{part}", ("text",), "label")
        classes = sorted({label for _, label in read("trec/train", ("text",), "label")})
        settings = ModelSettings(pooling="mean", layers="last", dtype="float32")
        task, words = load_task(settings, HeadOnly(), Key(0), tuple(classes))
        examples = encode_texts(words, [t[0] for t, _ in some], 64)
        x = features(task, task.params, examples, np.arange(len(examples)), 64)
        y = torch.tensor([classes.index(label) for _, label in some])
        save_file({"x": x, "y": y}, file)
    return load_file(file)


def loss(params: Params, batch: Any) -> Tensor:
    return torch.nn.functional.cross_entropy(
        batch["x"] @ params["head.weight"] + params["head.bias"], batch["y"]
    )


@cache
def world(
    seed: int, alpha: float = SKEWED
) -> tuple[tuple[dict[str, Tensor], ...], dict[str, Tensor], dict[str, Tensor]]:
    """The clients' rows, those held out, and the test rows."""
    train, test = rows("train"), rows("test")
    order = torch.from_numpy(Key(seed).fold("held out").permutation(len(train["y"])))
    kept, held = order[HELD_OUT:], order[:HELD_OUT]
    mean, std = train["x"][kept].mean(0), train["x"][kept].std(0)

    def of(part: dict[str, Tensor], some: Tensor) -> dict[str, Tensor]:
        return {"x": (part["x"][some] - mean) / std, "y": part["y"][some]}

    whole = of(train, kept)
    shares = Dirichlet(clients=CLIENTS, alpha=alpha, min_size=10).split(
        whole["y"].numpy(), None, Key(seed).fold("clients")
    )
    mine = [torch.from_numpy(np.asarray(shares.rows(i))) for i in range(CLIENTS)]
    clients = tuple({n: x[some] for n, x in whole.items()} for some in mine)
    return clients, of(train, held), of(test, torch.arange(len(test["y"])))


def accuracy(params: Params, part: dict[str, Tensor]) -> float:
    said = (part["x"] @ params["head.weight"] + params["head.bias"]).argmax(1)
    return float((said == part["y"]).double().mean())


def cell(
    rule: dict[str, Any],
    attack: dict[str, Any] | None,
    share: float,
    seed: int,
    rate: float = RATE,
    rounds: int = ROUNDS,
    alpha: float = SKEWED,
) -> dict[str, float]:
    """Accuracies after the last round, and the mean cosine of aggregate and honest mean."""
    clients, held, test = world(seed, alpha)
    cosines: list[float] = []
    before: Params = {"head.weight": torch.zeros(384, 6), "head.bias": torch.zeros(6)}
    start, who = before, frozenset[int]()

    def after(state: RunState, report: RoundReport) -> None:
        nonlocal before
        honest = [u for u in report.updates if u.client not in who]
        weight = sum(u.n_examples for u in honest)
        mean = {n: sum(u.n_examples * (u.grad or {})[n] for u in honest) / weight for n in before}
        moved = trees.subtract(before, state.params)
        length = trees.norm(moved) * trees.norm(mean)
        cosines.append(trees.dot(moved, mean) / length if length else 0.0)
        before = state.params

    settings: dict[str, Any] = {"attack": {**attack, "hostile": share}} if attack else {}
    if attack:
        who = forefed.configure(base={"attack": settings["attack"]}).attack.who(CLIENTS, Key(seed))
    result = forefed.simulate(
        loss,
        start,
        clients,
        units=[tuple(start)],
        rounds=rounds,
        seed=seed,
        engine={"kind": "backprop", "micro_batch": 64},
        client={"batch_size": 64, "optimiser": {"kind": "adamw", "lr": rate}},
        on_round=after,
        **rule,
        **settings,
    )
    assert not attack or isinstance(result.star.transport, Adversary)
    return {
        "test": accuracy(result.params, test),
        "held": accuracy(result.params, held),
        "cosine": float(np.mean(cosines)),
    }


def kept(
    rule: str, attack: str, share: float, seed: int, alpha: float = SKEWED
) -> dict[str, float]:
    """The cell, from compare/robust.jsonl or run now."""
    place = [rule, attack, share, seed, *([] if alpha == SKEWED else [alpha])]
    return cells.kept(
        "robust",
        place,
        lambda: cell(RULES[rule], ATTACKS.get(attack), share, seed, alpha=alpha),
    )


def all_cells() -> list[tuple[str, str, float, int, float]]:
    """Those of the tables, the most telling ones first."""
    clean = [(r, "none", 0.0, s, SKEWED) for s in range(SEEDS) for r in RULES]
    clean += [(r, "none", 0.0, s, ALIKE) for s in range(SEEDS) for r in ("mean", RECOMMENDED)]
    first, *later = (
        [(r, a, share, s, alpha) for s in range(SEEDS) for a in ATTACKS]
        for share, r, alpha in SEVERAL
    )
    whole = [(r, a, ALL, 0, SKEWED) for r in RULES for a in ATTACKS]
    return list(dict.fromkeys([*clean, *first, *whole, *(c for some in later for c in some)]))


def tables() -> Iterator[tuple[str, str]]:
    hostile = f"Robust rules, {ALL:.0%} of 50 clients hostile, one seed"
    columns = [(ALL, r, SKEWED) for r in RULES]
    yield f"{hostile}: accuracy", markdown(["attack", *RULES], list(accuracies(columns, 1)))
    yield (
        f"{hostile}: cosine of the aggregate to the honest mean",
        markdown(["attack", *RULES], list(cosines(columns, 1))),
    )
    heads = [
        f"{rule}, {share:.0%}{', alike' if alpha == ALIKE else ''}"
        for share, rule, alpha in SEVERAL
    ]
    title = f"Robust rules by the share of hostile clients, {SEEDS} seeds"
    body = list(accuracies(SEVERAL, SEEDS))
    yield f"{title}: accuracy", markdown(["attack", *heads], body)
    body = list(cosines(SEVERAL, SEEDS))
    yield f"{title}: cosine", markdown(["attack", *heads], body)


def accuracies(columns: Sequence[Column], seeds: int) -> Iterator[list[object]]:
    """A line for every attack, and what the worst one costs against a plain mean without any."""
    for attack in ("none", *ATTACKS):
        yield [attack, *(f"{mean('test', attack, c, seeds):.3f}"[1:] for c in columns)]
    lost = []
    for share, rule, alpha in columns:
        clean = mean("test", "none", (share, "mean", alpha), seeds)
        lost.append(max(clean - mean("test", a, (share, rule, alpha), seeds) for a in ATTACKS))
    yield ["worst: points lost", *(f"{100 * x:.1f}" for x in lost)]


def cosines(columns: Sequence[Column], seeds: int) -> Iterator[list[object]]:
    for attack in ("none", *ATTACKS):
        yield [attack, *(f"{mean('cosine', attack, c, seeds):.2f}" for c in columns)]


def mean(what: str, attack: str, column: Column, seeds: int) -> float:
    share, rule, alpha = column
    at = 0.0 if attack == "none" else share
    return float(np.mean([kept(rule, attack, at, s, alpha)[what] for s in range(seeds)]))


def fill(part: int, parts: int) -> None:
    """Run every ``parts``-th cell (several processes may share the work)."""
    for place in all_cells()[part::parts]:
        kept(*place)


if __name__ == "__main__":
    import sys

    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    fill(int(sys.argv[1]), int(sys.argv[2]))
