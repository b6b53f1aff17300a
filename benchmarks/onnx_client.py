"""A client without torch against one with it: memory, time and slopes of one step.

Each is a process of its own, one thread, on the same order, rows and directions: MiniLM in float32,
LoRA r = 1 on query and value, the head perturbed with it, a batch of 8 texts of at most 64 tokens,
K = 8 slopes. RSS: of the process (its peak), after the imports and after two steps; the step's time
is the processor's, of the second one. Slopes: norm of their difference, relative.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

K = 8
SETS = (
    *("name=onnx-client", "strategy=fedmezo", "codec=scalars", f"directions.k={K}", "start=none"),
    *("directions.clamp=0", "model.name=minilm", "model.dtype=float32", "data.limit=200"),
    *("data.max_length=64", "partition=iid", "partition.clients=10", "cohort=1", "guard=none"),
    *("client.max_steps=1", "client.batch_size=8"),
)
HEADER = (
    *("client", "libraries, MB", "RSS, MB", "of the first", "seconds a step", "start, s"),
    *("slopes from forward mode's", "from torch's differences"),
)
EPS = (1e-2, 1e-3)
ENGINES = ("torch, forward mode", "torch, finite differences", "torch, backprop projected")


def tables() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as name:
        child("prepare", name)
        yield "A client without torch (MiniLM, 8 slopes of 8 texts)", table(name)


def table(folder: str) -> str:
    """Of the clients on a folder that is prepared."""
    from benchmarks.table import markdown

    found = {engine: child(engine, folder) for engine in ENGINES}
    for eps in EPS:
        found[f"ONNX Runtime, differences of {eps:g}"] = child("slim", folder, str(eps))
    exact, differences = (np.array(found[e]["slopes"]) for e in ENGINES[:2])
    rows = []
    for client, got in found.items():
        apart = [
            np.linalg.norm(np.array(got["slopes"]) - x) / np.linalg.norm(x)
            for x in (exact, differences)
        ]
        rows.append(
            (
                client,
                *(f"{got[x]:.0f}" for x in ("libraries", "rss")),
                f"{got['rss'] / found[ENGINES[0]]['rss']:.2f}",
                f"{got['step']:.2f}",
                f"{got['start']:.1f}",
                *(f"{x:.1e}" for x in apart),
            )
        )
    return markdown(HEADER, rows)


def child(*what: str) -> Any:
    """What a process of its own has measured."""
    command = [sys.executable, "-m", "benchmarks.onnx_client", *what]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def rss() -> float:
    """The peak, in MB. (That of getrusage is the parent's, where the parent had more.)"""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def prepare(folder: Path) -> dict[str, Any]:
    """The client's folder, and an order at a point where no gradient is 0."""
    from forefed import Key, configure
    from forefed.core.types import Order
    from forefed.run.build import build
    from forefed.run.slim import slim_clients
    from forefed.wire.orders import encode_broadcast, encode_order

    federation = build(configure(sets=SETS))
    first = federation.task.params
    params = {n: x + 0.05 * Key(1).fold(n).normal(x.shape) for n, x in first.items()}
    order = Order(1, 1, 0, tuple(params), params)
    with slim_clients(federation, folder):
        (folder / "order").write_bytes(encode_order(order))
        (folder / "state").write_bytes(encode_broadcast(order))
    return {}


def with_torch(folder: Path, engine: str) -> dict[str, Any]:
    """As a client has it: model, tokeniser, rows; nothing of a server."""
    import torch

    from forefed import configure
    from forefed.core import trees
    from forefed.core.types import ClientContext
    from forefed.data.encoding import Texts, tokenise
    from forefed.data.examples import ClientData
    from forefed.gradients.backprop import Backprop
    from forefed.gradients.finite_difference import FiniteDifference
    from forefed.gradients.forward import Forward
    from forefed.models.load import load_tokenizer
    from forefed.run.build import load_model
    from forefed.wire.orders import decode_broadcast, decode_order

    libraries, began = rss(), time.process_time()
    torch.set_num_threads(1)
    config = configure(sets=SETS)
    params, told, _ = decode_broadcast((folder / "state").read_bytes())
    order = decode_order((folder / "order").read_bytes(), params, told)
    with (folder / "client-0" / "rows.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    labels = np.array([row["label"] for row in rows])
    texts = Texts([row["text"] for row in rows], None, labels)
    examples = tokenise(texts, load_tokenizer(config.model), config.data.max_length).examples
    data = ClientData(examples, np.arange(len(rows)), np.zeros(0, dtype=np.int64))
    classes = next(len(x) for n, x in params.items() if n.endswith("default.bias"))
    task = load_model(config, [str(i) for i in range(classes)])
    start = time.process_time() - began

    plan = config.client.sampler.batches(
        config.client, data, ClientContext(order=order), lambda rows: np.zeros(0)
    )
    batch, along = examples.batch(plan[0]), config.directions.of(order)
    for _ in range(2):
        began = time.process_time()
        if engine == ENGINES[2]:
            exact = Backprop()(task.loss, params, batch, None, task.head)
            slopes_K = along.project(trees.pick(exact.grad, params))
        else:
            engines = (Forward(head="perturbed", tangents=K), FiniteDifference(head="perturbed"))
            found = engines[ENGINES.index(engine)](task.loss, params, batch, along, task.head)
            assert found.slopes_K is not None
            slopes_K = found.slopes_K
        step = time.process_time() - began
    return measured(libraries, start, step, slopes_K.tolist())


def slim(folder: Path, eps: float) -> dict[str, Any]:
    import onnxruntime  # noqa: F401
    import tokenizers  # noqa: F401

    from forefed.slim.client import Client
    from forefed.slim.orders import read_order, read_state
    from forefed.slim.steps import train

    libraries, began = rss(), time.process_time()
    client = Client.of(folder / "client-0")
    start, settings = time.process_time() - began, replace(client.settings, eps=eps)
    params = read_state((folder / "state").read_bytes())
    order = read_order((folder / "order").read_bytes(), params)
    for _ in range(2):
        began = time.process_time()
        answer = train(settings, order, client.rows.lengths, client.loss)
        step = time.process_time() - began
    assert "torch" not in sys.modules
    return measured(libraries, start, step, answer.slopes[0].tolist())


def measured(libraries: float, start: float, step: float, slopes: list[float]) -> dict[str, Any]:
    return {"libraries": libraries, "rss": rss(), "start": start, "step": step, "slopes": slopes}


def main(what: str, folder: Path, *more: str) -> dict[str, Any]:
    if what == "prepare":
        return prepare(folder)
    return slim(folder, float(more[0])) if what == "slim" else with_torch(folder, what)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])))
