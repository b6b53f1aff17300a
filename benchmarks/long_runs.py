"""`python -m benchmarks.long_runs`: zeroth-order baselines and published SPRY for 2,000 rounds.

The main table gives everybody 30 rounds, and these methods were published with hundreds to
thousands. SST-2, 32 tokens, LoRA r = 1 on query and value of MiniLM's last block, a new head behind
its pooler, 2,306 numbers. What enters that block is computed once (the frozen prefix), and of the
block itself only what its first token needs, which is all that the pooler reads: the model's own
numbers for a fiftieth of the work. Through ``forefed.simulate``, slopes by ``engine.emulate``.

2,400 training rows in 100 clients, Dirichlet 1.0; two clients a round, of which each takes two
steps of eight rows (MeZO, SPRY, FedAvg) or one (DeComFL, FwdLLM). Rates are constant; a short run
does not tell slow ones apart, so it is the highest of a grid with which the loss of 400 rows of the
development file has not risen after 300 rounds. 1,000 test rows decide nothing. FedAvg is what
backprop makes of the same numbers; its rate is chosen in the same way.

Cells are kept in compare/long_runs.jsonl; what is there is not run again. Names of METHODS run
these alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import forefed
from benchmarks import cells
from benchmarks.first_model import read
from benchmarks.table import markdown
from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.data.partition import Dirichlet
from forefed.federation.report import RoundReport
from forefed.federation.star import RunState
from forefed.models.place import find
from forefed.models.settings import ModelSettings

ROUNDS, JUDGED, SEEDS = 2000, 300, 1
RISEN = 0.70
"""A development loss that says of a rate that it is too high; ln 2 is .693."""
SHOWN = (30, 100, 300, 600, 1000, 1500, 2000)
CLIENTS, COHORT, TOKENS, WIDTH, HEADS = 100, 2, 32, 384, 12
SIZES = {"train": 2400, "dev": 400, "test": 1000}
HEAD = ("head.weight", "head.bias")
UNITS = (("query.A", "query.B"), ("value.A", "value.B"), HEAD)
ONE = {"max_steps": 1, "batch_size": 8}
TWO = {"max_steps": 2, "batch_size": 8}


def stepping(rate: float, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A client's two plain steps."""
    return {"client": {**TWO, "optimiser": {"kind": "sgd", "lr": rate, **(more or {})}}}


def published(rate: float) -> dict[str, Any]:
    """One Gaussian direction over a unit of the client's, AdamW; FedYogi at the server."""
    optimiser = {"kind": "adamw", "lr": rate, "head_lr": rate}
    return {
        "strategy": "spry",
        "codec": "dense",
        "assign": {"kind": "cyclic", "rotate": False, "head": "unit", "replicas": 1},
        "engine": PERTURBED,
        "directions": {"kind": "fresh", "k": 1, "distribution": "gauss16"},
        "client": {**TWO, "optimiser": optimiser},
        "server": {"kind": "yogi"},
    }


def fedmezo(rate: float) -> dict[str, Any]:
    return {"strategy": "fedmezo", "engine": PERTURBED, **stepping(rate)}


def decomfl(rate: float) -> dict[str, Any]:
    directions = {"kind": "fresh", "k": 10, "shared": True, "distribution": "gauss16"}
    optimiser = {"kind": "sgd", "lr": rate, "head_lr": rate}
    return {
        "strategy": "decomfl",
        "engine": PERTURBED,
        "directions": directions,
        "client": {**ONE, "optimiser": optimiser},
    }


def fwdllm(rate: float) -> dict[str, Any]:
    server = {"kind": "adamw", "lr": rate, "head_lr": rate}
    directions = {"kind": "candidates", "count": 5, "k": 10, "distribution": "gauss16"}
    return {
        "strategy": "fwdllm",
        "engine": PERTURBED,
        "directions": directions,
        "server": server,
        "client": ONE,
    }


def fedavg(rate: float) -> dict[str, Any]:
    client = {**TWO, "optimiser": {"kind": "adamw", "lr": rate, "head_lr": rate}}
    return {"strategy": "fedavg", "engine": {"micro_batch": None}, "client": client}


PERTURBED = {"head": "perturbed", "emulate": True, "micro_batch": None}
METHODS = {
    "FedMeZO": (fedmezo, (1e-2, 3e-3, 1e-3)),
    "DeComFL": (decomfl, (1e-1, 3e-2, 1e-2)),
    "FwdLLM": (fwdllm, (1e-2, 3e-3, 1e-3)),
    "published SPRY": (published, (1e-2, 1e-3, 1e-4)),
    "FedAvg": (fedavg, (1e-2, 3e-3, 1e-3)),
}
"""What is perturbed is as published, head and adapters together. Rates from high to low."""


@cache
def block() -> dict[str, Tensor]:
    """Matrices of the last block and of the pooler."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(find(ModelSettings()).folder)
    layer, pooler = model.encoder.layer[-1], model.pooler
    return {n: x.detach() for part in (layer, pooler) for n, x in part.named_parameters()}


@cache
def rows(part: str) -> dict[str, Tensor]:
    """What enters the last block, "h" [N, 32, 384], the mask "m" [N, 32], classes "y" [N]."""
    file = cells.KEPT / f"long_runs_{part}.safetensors"
    if file.exists():
        return load_file(file)
    from transformers import AutoModel, AutoTokenizer

    folder = find(ModelSettings()).folder
    words, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = read(f"sst2/{part}", ("text",), "label")
    some = [found[i] for i in Key(0).fold(part).permutation(len(found))[: SIZES[part]]]
    texts = [texts[0] for texts, _ in some]
    tokens = words(texts, padding="max_length", truncation=True, max_length=TOKENS)
    ids, mask = (torch.tensor(tokens[n]) for n in ("input_ids", "attention_mask"))
    last = model.encoder.layer[-1]
    entering: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    hidden, off = torch.zeros(len(some), TOKENS, WIDTH), 0.0
    y = torch.tensor([int(label) for _, label in some])
    with torch.no_grad():
        for at in torch.argsort(mask.sum(1)).split(64):  # short texts beside short texts
            length = int(mask[at].sum(1).max())
            given = {"input_ids": ids[at, :length], "attention_mask": mask[at, :length]}
            pooled = model(**given).pooler_output
            hidden[at, :length] = entering.pop()
            mine = features(first(0), {"h": hidden[at], "m": mask[at]})
            off = max(off, float((mine - pooled).abs().max()))
    hook.remove()
    assert off < 1e-5, off  # the block below is the model's
    cells.KEPT.mkdir(exist_ok=True)
    save_file({"h": hidden, "m": mask, "y": y}, file)
    return load_file(file)


def features(params: Params, batch: dict[str, Tensor]) -> Tensor:
    """The pooler's output of the last block with its LoRA, [B, 384], by the first token alone."""
    w, h_BSH = block(), batch["h"]
    x_BH = h_BSH[:, 0]

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12)

    q_BH = linear(x_BH, "attention.self.query") + x_BH @ params["query.A"].T @ params["query.B"].T
    # scores are q . (K h): the key matrix is moved to the one query, and no key is ever made
    key_NDH = w["attention.self.key.weight"].view(HEADS, -1, WIDTH)
    asked_BNH = torch.einsum("bnd,ndh->bnh", q_BH.view(len(q_BH), HEADS, -1), key_NDH)
    scores_BNS = asked_BNH @ h_BSH.mT / (WIDTH // HEADS) ** 0.5
    scores_BNS = scores_BNS.masked_fill(batch["m"][:, None] == 0, -torch.inf)
    read_BNH = scores_BNS.softmax(-1) @ h_BSH  # a mean of tokens for every head, then its values
    value_NDH = w["attention.self.value.weight"].view(HEADS, -1, WIDTH)
    mixed_BND = torch.einsum("bnh,ndh->bnd", read_BNH, value_NDH)
    mixed_BND = mixed_BND + (read_BNH @ params["value.A"].T) * params["value.B"].view(HEADS, -1)
    mixed_BH = mixed_BND.flatten(1) + w["attention.self.value.bias"]
    middle_BH = norm(
        linear(mixed_BH, "attention.output.dense") + x_BH, "attention.output.LayerNorm"
    )
    wide = functional.gelu(linear(middle_BH, "intermediate.dense"))
    out_BH = norm(linear(wide, "output.dense") + middle_BH, "output.LayerNorm")
    return torch.tanh(linear(out_BH, "dense"))


def loss(params: Params, batch: Any) -> Tensor:
    return functional.cross_entropy(logits(params, batch), batch["y"])


def logits(params: Params, batch: dict[str, Tensor]) -> Tensor:
    return features(params, batch) @ params[HEAD[0]].T + params[HEAD[1]]


def first(seed: int) -> Params:
    """LoRA that changes nothing yet, and a drawn head."""
    key = Key(seed).fold("first")
    found: Params = {}
    for name in ("query", "value"):
        found[f"{name}.A"] = (2 * key.fold(name).uniform((1, WIDTH)) - 1) / WIDTH**0.5
        found[f"{name}.B"] = torch.zeros(WIDTH, 1)
    found[HEAD[0]] = 0.02 * key.fold("head").normal((2, WIDTH))
    found[HEAD[1]] = torch.zeros(2)
    return found


def clients(seed: int) -> list[dict[str, Tensor]]:
    whole = rows("train")
    split = Dirichlet(clients=CLIENTS, alpha=1.0, min_size=1)
    shares = split.split(whole["y"].numpy(), None, Key(seed).fold("clients"))
    mine = [torch.from_numpy(np.asarray(shares.rows(i))) for i in range(CLIENTS)]
    return [{n: x[some] for n, x in whole.items()} for some in mine]


def judged(params: Params, part: str) -> dict[str, float]:
    """Loss and accuracy on all rows of a part."""
    whole = rows(part)
    with torch.no_grad():
        said = logits(params, whole)
    right = (said.argmax(1) == whole["y"]).double().mean()
    return {"loss": float(functional.cross_entropy(said, whole["y"])), "accuracy": float(right)}


class Risen(Exception):
    """The rate is too high."""


def run(method: str, rate: float, seed: int) -> dict[str, Any]:
    """What development and test rows say after some rounds, and what it took."""
    curve: dict[str, dict[str, float]] = {}
    reports: list[RoundReport] = []

    def after(state: RunState, report: RoundReport) -> None:
        reports.append(report)
        if state.round not in SHOWN:
            return
        curve[str(state.round)] = {
            f"{part} {what}": x
            for part in ("dev", "test")
            for what, x in judged(state.params, part).items()
        }
        print(method, rate, seed, state.round, curve[str(state.round)], flush=True)
        if state.round == JUDGED and not curve[str(JUDGED)]["dev loss"] <= RISEN:
            raise Risen

    with suppress(Risen):
        forefed.simulate(
            loss,
            first(seed),
            clients(seed),
            units=UNITS,
            head=HEAD,
            cohort=COHORT,
            rounds=ROUNDS,
            seed=seed,
            on_round=after,
            **METHODS[method][0](rate),
        )
    answers = sum(len(r.updates) for r in reports)
    return {"curve": curve, "up": sum(r.bytes_up for r in reports) / answers}


def kept(method: str, rate: float, seed: int) -> dict[str, Any]:
    """The cell, from compare/long_runs.jsonl or run now."""
    return cells.kept("long_runs", [method, rate, seed], lambda: run(method, rate, seed))


def tried(method: str) -> dict[float, float]:
    """The loss of development rows by rate after JUDGED rounds of seed 0, down to the chosen."""
    losses: dict[float, float] = {}
    for rate in METHODS[method][1]:
        losses[rate] = kept(method, rate, 0)["curve"][str(JUDGED)]["dev loss"]
        if losses[rate] <= RISEN:
            break
    return losses


def tables(names: list[str]) -> Iterator[tuple[str, str]]:
    body, tuning = [], []
    for name in names:
        losses = tried(name)
        found = [kept(name, min(losses), seed) for seed in range(SEEDS)]
        at = [", ".join(shown(f["curve"].get(str(r))) for f in found) for r in SHOWN]
        bytes_up = np.mean([f["up"] for f in found])
        body.append([name, f"{min(losses):g}", *at, f"{bytes_up:.0f}"])
        tuning.append([name, "; ".join(f"{r:g}: {x:.4f}" for r, x in losses.items())])
    heads = ["method", "rate", *(f"{r} rounds" for r in SHOWN), "bytes up an answer"]
    yield "Test accuracy", markdown(heads, body)
    yield f"Development loss after {JUDGED} rounds, by rate", markdown(["method", "tried"], tuning)


def shown(there: dict[str, float] | None) -> str:
    return "–" if there is None else f"{there['test accuracy']:.3f}"[1:]


if __name__ == "__main__":
    assert os.environ.get("FOREFED_DATA"), "FOREFED_DATA: name the folder with the data sets"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    assert Path(os.environ["FOREFED_DATA"]).is_dir()
    for title, table in tables(sys.argv[1:] or [*METHODS]):
        print(f"\n{title}\n\n{table}")
