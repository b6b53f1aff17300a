"""`python -m benchmarks where`: which layer to adapt, and along which directions.

Two rows that the study `map` does not have. An early block with outlying activations
(Dominant-Layer ZO, arXiv 2606.05516): of the first half of the blocks the one whose input has the
largest share of its squared activations in one coordinate, on 32 training texts. And directions in
the span of a layer's inputs (AGZO, arXiv 2601.17261): LoRA's A holds the largest principal
directions of what enters its matrix and stays, B is trained, so a direction moves the matrix along
those alone; beside it A as it is drawn, at the same norm.

SST-2 (WHERE_SETS, WHERE_SEEDS), FIRST_MODEL_TRAIN rows, 10 clients, Dirichlet 1.0, all with all of
their rows, one step a round, server Adam at 1e-2; bfloat16, 32 tokens; from the solved head, which
stays. "exact": the gradient; "difference": one direction by two losses (by one backward pass, in
the limit of eps to 0). Every step is taken.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import first_model
from benchmarks.curvature import begun_at, counted
from benchmarks.table import markdown
from forefed.core.lora import is_a
from forefed.core.types import Params
from forefed.models.blocks import Blocks
from forefed.models.task import Task
from forefed.run import configure
from forefed.run.build import build
from forefed.run.start_result import Begun, with_start

ROUNDS = int(os.environ.get("WHERE_ROUNDS", "6"))
SETTINGS = (
    *("strategy=fedfgd", "codec=dense", "guard=none", "cohort=10", "partition.clients=10"),
    *("partition.alpha=1.0", "client.max_steps=1", "client.batch_size=all"),
    *("client.optimiser={kind='sgd', lr=1.0}", "server={kind='adam', lr=1e-2}"),
    *("model.dtype=bfloat16", "data.max_length=32", f"rounds={ROUNDS}"),
)
METHODS = {
    "exact": ("directions=basis",),
    "difference": (
        "engine={kind='forward', emulate=true}",
        "directions={kind='fresh', k=1, distribution='rademacher'}",
    ),
}


def tables() -> Iterator[tuple[str, str]]:
    names = os.environ.get("WHERE_SETS", "sst2").split(";")
    seeds = [int(s) for s in os.environ.get("WHERE_SEEDS", "0").split()]
    rows = [row for seed in seeds for name in names for row in measured(name, seed)]
    head = ["set", "seed", "where", "method", "training loss, first", "last", "held-out", "test"]
    yield "Where to adapt", markdown(head, rows)


def measured(name: str, seed: int) -> Iterator[list[str]]:
    train, test = first_model.drawn(name, seed)
    with tempfile.TemporaryDirectory() as folder:
        made = first_model.sets_of(Path(folder), name, train, test, 1.0, seed)
        sets = [*made, *SETTINGS]
        begun = begun_at(sets)
        seen = inputs([*sets, tiny("all")])
        early = outlying(seen)
        for where, adapter, spanned in (
            ("last block", tiny("last:1"), False),
            (f"block {early}, outlying", tiny(f"[{early}]"), False),
            ("last block, B, A drawn", LORA, False),
            ("last block, B, A of its inputs", LORA, True),
        ):
            for method, own in METHODS.items():
                sharing = ("sharing=ffa_lora",) if adapter == LORA else ()
                line = trained([*sets, adapter, *sharing, *own], begun, seen if spanned else {})
                said = {"set": name, "seed": seed, "where": where, "method": method, **line}
                print(json.dumps(said), flush=True)
                numbers = (line["loss"][0], line["loss"][-1], line["held"][-1], line["test"][-1])
                yield [name, str(seed), where, method, *(f"{x:.3f}" for x in numbers)]


LORA = "adapter={kind='lora', r=4, alpha=4.0, layers='last:1', targets='all-linear'}"


def tiny(layers: str) -> str:
    said = layers if layers.startswith("[") else f"'{layers}'"
    return f"adapter={{kind='tinylora', r=64, u=16, targets='all-linear', layers={said}}}"


def inputs(sets: list[str]) -> dict[str, Tensor]:
    """What enters every adapted matrix on 32 training texts, [tokens, width], by its module's name;
    and every block, by "block/number"."""
    federation = build(configure(sets=sets))
    task, population = federation.task, federation.data.population
    rows = np.concatenate([population.client(c).train for c in range(population.size)])[:32]
    batch = population.examples.batch(np.sort(rows))
    there = batch.inputs["attention_mask"].bool()
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in places(task).items():

        def spy(module: Any, args: Any, kwargs: Any, name: str = name) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            if x.dim() == 3 and x.shape[1] == there.shape[1]:
                seen[name] = x.detach()[there].float()

        hooks.append(module.register_forward_pre_hook(spy, with_kwargs=True))
    with torch.no_grad():
        task.logits(task.params, batch)
    for hook in hooks:
        hook.remove()
    return seen


def places(task: Task) -> dict[str, Any]:
    base = task.model.get_base_model()
    names = Blocks.find(base, ("classifier",)).names
    found = {f"block/{i}": base.get_submodule(n) for i, n in enumerate(names)}
    return found | {n: m for n, m in base.named_modules() if hasattr(m, "base_layer")}


def outlying(seen: dict[str, Tensor]) -> int:
    """Of the first half of the blocks the one with the most outlying input."""
    blocks = [x for n, x in sorted(seen.items()) if n.startswith("block/")]
    shares = []
    for x in blocks:
        square = (x - x.mean(1, keepdim=True)).square()
        shares.append(float(square.sum(0).max() / square.sum()))
    print(json.dumps({"share of the largest coordinate, by block": shares}), flush=True)
    return int(np.argmax(shares[: len(shares) // 2]))


def spanning(params: Params, seen: dict[str, Tensor]) -> Params:
    """LoRA's A in the span of its matrix's inputs: orthogonal rows, at the norm that A has."""
    found = dict(params)
    for n, a_RD in params.items():
        if is_a(n):
            module = n.removeprefix("base_model.model.").split(".lora_")[0]
            _, _, v_DD = torch.linalg.svd(seen[module], full_matrices=False)
            rows = v_DD[: len(a_RD)]
            found[n] = (rows * a_RD.norm() / rows.norm()).to(a_RD)
    return found


def trained(sets: list[str], begun: Begun | None, seen: dict[str, Tensor]) -> dict[str, Any]:
    federation = build(configure(sets=sets))
    state = federation.start()
    state = replace(state, params=spanning(state.params, seen)) if seen else state
    words = None
    if begun is not None:
        state, words = with_start(state, begun), begun.words
    found: dict[str, Any] = {"loss": [], "held loss": [], "held": [], "test": []}
    counted(federation, state.params, words, found, False)
    for done in range(ROUNDS):
        state, report = federation.star.round(state)
        heard = [u for u in report.updates if u.n_examples]
        losses, weights = [u.metrics["loss"] for u in heard], [u.n_examples for u in heard]
        found["loss"].append(round(float(np.average(losses, weights=weights)), 4))
        counted(federation, state.params, words, found, done + 1 == ROUNDS)
    return found
