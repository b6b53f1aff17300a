"""`python -m benchmarks family`: personal models, LoRA rules, drift, rounds that wait for nobody.

TREC (six classes), features of frozen MiniLM (last layer, mean-pooled, standardised): 2,000 of the
training rows and all 500 test rows. On them a fixed random layer [128, 384] with a LoRA beside it,
tanh, and a head: h = tanh(W x + s B A x), trained through ``forefed.simulate`` with AdamW (batches
of 32) at one rate, 1e-2, that was not tuned.

Cells are kept in compare/family.jsonl; what is there is not run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import forefed
from benchmarks import cells, robust
from benchmarks.table import markdown
from forefed.core.keys import Key
from forefed.core.lora import FOLDED
from forefed.core.types import Params
from forefed.data.partition import Dirichlet
from forefed.run.simulate import Rows, Simulation
from forefed.use.bandit import next_rows, surprises

TRAIN, SEEDS, WIDTH, RATE = 2000, 3, 128, 1e-2
BODY = ("m.lora_A.w", "m.lora_B.w")
HEAD = ("head.weight", "head.bias")

PERSONAL: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "local only": {"sharing": "local_only"},
    "FedAvg, then fine-tuned": {"sharing": {"kind": "fine_tune", "after": 8}},
    "FedPer": {"sharing": "personal_head"},
    "FedSA-LoRA": {"sharing": "fedsa_lora"},
}
MIXED = {"kind": "ranks", "ranks": [2, 4, 8, 16]}
RULES: dict[str, dict[str, Any]] = {
    "FedIT (means of A and B)": {},
    "FFA-LoRA": {"strategy": "ffa_lora"},
    "RoLoRA": {"strategy": "rolora"},
    "FedSVD": {"strategy": "fedsvd"},
    "FedEx": {"strategy": "fedex"},
    "FLoRA": {"strategy": "flora"},
    "FlexLoRA, one rank": {"strategy": "flexlora", "sharing": "everything"},
    "FedKRSO": {"strategy": "fedkrso"},
    "Fed-SB, r = 16": {"strategy": "fedsb"},
}
RANKS: dict[str, dict[str, Any]] = {
    "FedIT, 16": {},
    "FlexLoRA, all 16": {"strategy": "flexlora", "sharing": "everything"},
    "FlexLoRA, 2 4 8 16": {"strategy": "flexlora", "sharing": MIXED},
    "FLoRA, 2 4 8 16": {"strategy": "flora", "sharing": MIXED},
    "HetLoRA, 2 4 8 16": {"strategy": "hetlora", "sharing": MIXED},
}
DRIFT: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedProx, 0.1": {"strategy": "fedprox", "modifiers": [{"kind": "proximal", "mu": 0.1}]},
    "FedDyn, 0.1": {"strategy": "feddyn", "modifiers": [{"kind": "feddyn", "alpha": 0.1}]},
    "FedDyn, 0.01": {"strategy": "feddyn", "modifiers": [{"kind": "feddyn", "alpha": 0.01}]},
    "FedSpeed, 0.01": {"strategy": "fedspeed", "modifiers": [{"kind": "feddyn", "alpha": 0.01}]},
    "SCAFFOLD": {"modifiers": ["scaffold"]},
    "diffGrad at the clients": {"optimiser": "diffgrad"},
    "diffGrad at the server": {"server": {"kind": "diffgrad", "lr": RATE}},
}
ORDER: dict[str, dict[str, Any]] = {
    "as they come": {},
    **{
        f"curriculum, {order} first": {"sampler": {"kind": "curriculum", "order": order}}
        for order in ("easy", "hard", "random")
    },
}
"""Of examples, within a client's round of five local epochs."""
SYNCHRONOUS, IN_TIME = "synchronous", 0.6
WAITING: dict[str, dict[str, Any]] = {
    SYNCHRONOUS if k == 10 else f"FedBuff, K = {k}, server's rate {rate}": {
        "strategy": "fedbuff",
        "rounds": moves,
        "topology": {"kind": "buffered", "buffer": k, "slow": 0.3},
        "server": {"kind": "sgd", "lr": rate},
    }
    for k, rate, moves in ((10, 1.0, 12), (5, 1.0, 75), (5, 0.5, 75), (3, 1.0, 125), (3, 0.3, 125))
}
"""The synchronous rounds take about 130 units of time, 0.6 of which is as many moves as are given
here, or fewer."""


@cache
def raw(part: str) -> dict[str, Tensor]:
    """Features "x" [N, 384] and classes "y" [N]."""
    file = cells.KEPT / f"family_{part}.safetensors"
    if not file.exists():
        cells.KEPT.mkdir(exist_ok=True)
        whole = robust.rows(part)
        some = np.random.default_rng(0).permutation(len(whole["y"]))
        chosen = torch.from_numpy(some[:TRAIN])
        save_file({n: x[chosen].contiguous() for n, x in whole.items()}, file)
    return load_file(file)


@cache
def rows(part: str) -> dict[str, Tensor]:
    """The same, standardised by the training rows."""
    found = raw(part)
    base = raw("train")["x"]
    return {**found, "x": (found["x"] - base.mean(0)) / base.std(0)}


@cache
def fixed(seed: int) -> Tensor:
    """W [128, 384], which rests."""
    return Key(seed).fold("fixed").normal((WIDTH, 384)) / 384**0.5


CORE = "m.core"
"""R [16, 16] of Fed-SB, between the first singular vectors of W."""


@cache
def singular(seed: int) -> tuple[Tensor, Tensor]:
    """B [128, 16] and A [16, 384] of Fed-SB."""
    u, _, vt = torch.linalg.svd(fixed(seed), full_matrices=False)
    return u[:, :16], vt[:16]


def first(seed: int, rank: int, dense: bool, core: bool = False) -> Params:
    if core:
        return {
            CORE: torch.zeros(16, 16),
            HEAD[0]: torch.zeros(WIDTH, 6),
            HEAD[1]: torch.zeros(6),
        }
    start: Params = {
        BODY[0]: (2 * Key(seed).fold("A").uniform((rank, 384)) - 1) / 384**0.5,
        BODY[1]: torch.zeros(WIDTH, rank),
        HEAD[0]: torch.zeros(WIDTH, 6),
        HEAD[1]: torch.zeros(6),
    }
    return {**start, f"m.{FOLDED}": torch.zeros(WIDTH, 384)} if dense else start


def logits(params: Params, x: Tensor, base: Tensor, seed: int = 0) -> Tensor:
    if CORE in params:
        b, a = singular(seed)
        z = x @ base.T + x @ a.T @ params[CORE].T @ b.T
        return torch.tanh(z) @ params[HEAD[0]] + params[HEAD[1]]
    z = x @ base.T + 2 * (x @ params[BODY[0]].T) @ params[BODY[1]].T
    if f"m.{FOLDED}" in params:
        z = z + 2 * x @ params[f"m.{FOLDED}"].T
    return torch.tanh(z) @ params[HEAD[0]] + params[HEAD[1]]


def accuracy(params: Params, part: Rows, seed: int) -> float:
    said = logits(params, part["x"], fixed(seed), seed).argmax(1)
    return float((said == part["y"]).double().mean())


def shares(seed: int, clients: int, alpha: float, permuted: bool) -> list[dict[str, Tensor]]:
    """The clients' rows; permuted: client i calls class y (y + i) mod 6."""
    train = rows("train")
    split = Dirichlet(clients=clients, alpha=alpha, min_size=8).split(
        train["y"].numpy(), None, Key(seed).fold("clients")
    )
    mine = [torch.from_numpy(np.asarray(split.rows(i))) for i in range(clients)]
    whole = [{n: x[some] for n, x in train.items()} for some in mine]
    return [{**w, "y": (w["y"] + i * permuted) % 6} for i, w in enumerate(whole)]


def run(
    seed: int,
    clients: list[dict[str, Tensor]],
    rounds: int,
    rank: int,
    epochs: int = 1,
    rate: float = RATE,
    on_round: Any = None,
    strategy: str = "fedavg",
    optimiser: str = "adamw",
    sampler: Any = "shuffled",
    **settings: Any,
) -> Simulation:
    base = fixed(seed)

    def loss(params: Params, batch: Rows) -> Tensor:
        said = logits(params, batch["x"], base, seed)
        return torch.nn.functional.cross_entropy(said, batch["y"])

    dense, core = strategy in ("fedex", "flora", "fedkrso"), strategy == "fedsb"
    return forefed.simulate(
        loss,
        first(seed, rank, dense, core),
        clients,
        strategy=strategy,
        units=[(CORE,) if core else BODY, HEAD],
        head=HEAD,
        rounds=rounds,
        seed=seed,
        client={
            "batch_size": 32,
            "epochs": epochs,
            "sampler": sampler,
            "optimiser": {"kind": optimiser, "lr": rate, "head_lr": rate},
        },
        on_round=on_round,
        **settings,
    )


def personal(seed: int, permuted: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Own models and the common one; clients that permute labels test on all test rows, others on
    a third of their own rows."""
    test = rows("test")
    if permuted:
        mine = shares(seed, 10, 100.0, True)
        tests = [{**test, "y": (test["y"] + i) % 6} for i in range(10)]
    else:
        whole = shares(seed, 10, 0.3, False)
        mine = [{n: x[: len(x) - len(x) // 3] for n, x in w.items()} for w in whole]
        tests = [{n: x[len(x) - len(x) // 3 :] for n, x in w.items()} for w in whole]
    found = run(seed, mine, 12, 8, **settings)
    own = [accuracy(found.own(i), t, seed) for i, t in enumerate(tests)]
    common = [accuracy(found.params, t, seed) for t in tests]
    n = [len(t["y"]) for t in tests]
    return {
        "own": float(np.average(own, weights=n)),
        "common": float(np.average(common, weights=n)),
        "worst": min(own),
        "up": int(np.mean([r.bytes_up for r in found.reports]) / 10),
    }


def lora(seed: int, rank: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Rules for LoRA, 12 clients, Dirichlet 0.3."""
    found = run(seed, shares(seed, 12, 0.3, False), 12, rank, epochs=2, **settings)
    errors = [r.metrics["lora_error"] for r in found.reports if "lora_error" in r.metrics]
    return {
        "test": accuracy(found.params, rows("test"), seed),
        "error": float(np.mean(errors)) if errors else 0.0,
        "up": int(np.mean([r.bytes_up for r in found.reports]) / 12),
        "down": int(np.mean([r.bytes_down for r in found.reports]) / 12),
    }


def drift(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """10 clients, Dirichlet 0.1, six rounds of five local epochs."""
    curve: list[float] = []

    def after(state: Any, report: Any) -> None:
        curve.append(accuracy(state.params, rows("test"), seed))

    run(seed, shares(seed, 10, 0.1, False), 6, 8, epochs=5, on_round=after, **settings)
    return {"curve": curve}


def waiting(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """20 clients, 10 at work, 30 % of them ten times as slow."""
    curve: list[tuple[float, float]] = []

    def after(state: Any, report: Any) -> None:
        curve.append((report.metrics["clock"], accuracy(state.params, rows("test"), seed)))

    settings = dict(settings)
    rounds = settings.pop("rounds")
    run(seed, shares(seed, 20, 1.0, False), rounds, 8, on_round=after, cohort=10, **settings)
    return {"curve": curve}


def labelled(seed: int, name: str) -> dict[str, Any]:
    """100 rows with labels by chance, and 50 more, of whom `forefed annotate` or chance asks: what
    a ridge classifier of all 150 gets right of the test rows."""
    train, test = rows("train"), rows("test")
    x, y = train["x"].double().numpy(), train["y"].numpy()
    order = Key(seed).fold("labels").permutation(len(y))
    known, asked = [int(i) for i in order[:100]], [int(i) for i in order[100:150]]
    if name == "asked by annotate":
        worth = surprises(x[known], [int(y[i]) for i in known])
        asked = next_rows(x, known, worth, {*range(len(y))} - {*known}, 50)
    mine = known + asked
    a = np.hstack([x[mine], np.ones((len(mine), 1))])
    w = np.linalg.solve(a.T @ a + 100 * np.eye(a.shape[1]), a.T @ np.eye(6)[y[mine]])
    there = test["x"].double().numpy()
    said = (np.hstack([there, np.ones((len(there), 1))]) @ w).argmax(1)
    return {"test": float((said == test["y"].numpy()).mean())}


LABELLED = {"asked by annotate": {}, "asked by chance": {}}


def kept(study: str, name: str, seed: int) -> dict[str, Any]:
    """The cell, from compare/family.jsonl or run now."""
    run = {
        "permuted": lambda: personal(seed, True, PERSONAL[name]),
        "natural": lambda: personal(seed, False, PERSONAL[name]),
        "rules": lambda: lora(seed, 8, RULES[name]),
        "ranks": lambda: lora(seed, 16, RANKS[name]),
        "drift": lambda: drift(seed, DRIFT[name]),
        "labelled": lambda: labelled(seed, name),
        "order": lambda: drift(seed, ORDER[name]),
        "waiting": lambda: waiting(seed, WAITING[name]),
    }[study]
    return cells.kept("family", [study, name, seed], run)


STUDIES = {
    "permuted": PERSONAL,
    "ranks": RANKS,
    "waiting": WAITING,
    "natural": PERSONAL,
    "rules": RULES,
    "drift": DRIFT,
    "order": ORDER,
    "labelled": LABELLED,
}


def mean(study: str, name: str, what: str) -> float:
    return float(np.mean([kept(study, name, s)[what] for s in range(SEEDS)]))


Curve = list[tuple[float, float]]
"""Time and accuracy after every move."""


def in_time(name: str, curve: Curve, goal: Curve) -> dict[str, float]:
    """Quality (mean of the last tests that are within 0.6 of the synchronous rounds' time, as many
    as three synchronous rounds have answers), answers until then, and the first time at which a
    mean of so many tests was the synchronous quality (infinite: never).

    Args:
        goal: that of the synchronous rounds.
    """
    last = IN_TIME * goal[-1][0] if name != SYNCHRONOUS else goal[-1][0]
    k = WAITING[name]["topology"]["buffer"]
    curve = [(t, q) for t, q in curve if t <= last]
    several = 30 // k
    wanted = float(np.mean([q for _, q in goal[-3:]]))
    means = [
        float(np.mean([q for _, q in curve[max(0, i - several + 1) : i + 1]]))
        for i in range(len(curve))
    ]
    there = [
        t
        for (t, _), m in zip(curve[several - 1 :], means[several - 1 :], strict=True)
        if m >= wanted
    ]
    return {
        "quality": means[-1],
        "answers": len(curve) * k,
        "clock": curve[-1][0],
        "reached": there[0] if there else float("inf"),
    }


def reached(curves: dict[str, list[Curve]]) -> str:
    """The table of rounds that wait for nobody, from every row's curves by seed."""
    body = []
    for n, mine in curves.items():
        found = [in_time(n, c, g) for c, g in zip(mine, curves[SYNCHRONOUS], strict=True)]
        by_seed = ", ".join(f"{f['quality']:.3f}"[1:] for f in found)
        quality, answers, clock = (
            np.mean([f[x] for f in found]) for x in ("quality", "answers", "clock")
        )
        there = ", ".join(
            "never" if f["reached"] == float("inf") else f"{f['reached']:.0f}" for f in found
        )
        body.append([n, f"{answers:.0f}", f"{clock:.0f}", f"{quality:.3f}"[1:], by_seed, there])
    heads = ["rounds", "answers", "clock", "accuracy", "by seed", "synchronous quality reached at"]
    return markdown(heads, body)


def tables() -> Iterator[tuple[str, str]]:
    for study, what in (
        ("permuted", "Clients that name the classes differently"),
        ("natural", "Clients with other shares of the classes (Dirichlet 0.3)"),
    ):
        body = [
            [
                n,
                *(f"{mean(study, n, x):.3f}"[1:] for x in ("own", "common", "worst")),
                f"{mean(study, n, 'up') / 1e3:.1f}",
            ]
            for n in PERSONAL
        ]
        heads = ["method", "own model", "common model", "worst client", "kB up"]
        yield f"{what}, {SEEDS} seeds", markdown(heads, body)
    for study, methods, what in (
        ("rules", RULES, "Rules for LoRA at r = 8"),
        ("ranks", RANKS, "Rules for LoRA of mixed ranks"),
    ):
        body = [
            [
                n,
                f"{mean(study, n, 'test'):.3f}"[1:],
                f"{mean(study, n, 'error'):.3f}",
                f"{mean(study, n, 'up') / 1e3:.1f}",
                f"{mean(study, n, 'down') / 1e3:.1f}",
            ]
            for n in methods
        ]
        heads = ["rule", "accuracy", "error of the aggregate", "kB up", "kB down"]
        yield f"{what}, {SEEDS} seeds", markdown(heads, body)
    for study, methods, what in (("drift", DRIFT, "Drift"), ("order", ORDER, "Order")):
        body = []
        for n in methods:
            curves = np.array([kept(study, n, s)["curve"] for s in range(SEEDS)])
            by_seed = ", ".join(f"{c[-1]:.3f}"[1:] for c in curves)
            body.append([n, *(f"{curves.mean(0)[r - 1]:.3f}"[1:] for r in (1, 3, 6)), by_seed])
        heads = ["method", "1 round", "3", "6", "by seed"]
        yield f"{what} (Dirichlet 0.1, five local epochs), {SEEDS} seeds", markdown(heads, body)
    curves = {n: [kept("waiting", n, s)["curve"] for s in range(SEEDS)] for n in WAITING}
    yield f"Three in ten clients ten times as slow, {SEEDS} seeds", reached(curves)


if __name__ == "__main__":
    import sys

    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    for seed in range(SEEDS):
        for study, methods in STUDIES.items():
            for name in methods if len(sys.argv) < 2 or study in sys.argv[1:] else ():
                print(study, name, seed, str(kept(study, name, seed))[:200], flush=True)
