"""Bytes per client and round of each way of sending, for one MiniLM federation's shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from benchmarks.table import markdown
from forefed.core.keys import Key
from forefed.core.types import ClientContext, Order
from forefed.data.examples import ClientData, Examples
from forefed.directions import Basis, Directions, Fresh
from forefed.gradients import GradientEngine
from forefed.gradients.backprop import Backprop
from forefed.gradients.forward import Forward
from forefed.local import LocalTraining, TaskView, Trainer
from forefed.models.adapters import Lora, TinyLora
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.models.task import Task
from forefed.wire import Codec, Dense, Scalars
from forefed.wire.orders import encode_broadcast, encode_order

STEPS = 4


def client_data() -> ClientData:
    """32 random token rows: bytes do not depend on what they say."""
    n, length = 8 * STEPS, 16
    tokens = Key(1).integers(n * length, 20_000).astype(np.int32) + 1000
    labels = Key(2).integers(n, 4)
    offsets = np.arange(0, n * length + 1, length)
    examples = Examples(tokens, None, offsets, labels, np.zeros(n, dtype=np.int64), pad_id=0)
    return ClientData(examples, np.arange(n), np.zeros(0, dtype=np.int64))


def bytes_of(
    task: Task, names: tuple[str, ...], engine: GradientEngine, kind: Directions, codec: Codec
) -> tuple[int, int]:
    view = TaskView(task.loss, task.loss_recomputed, task.head)
    order = Order(1, 1, 1, names, task.params)
    train = Trainer(LocalTraining(max_steps=STEPS), engine, codec, view, directions=kind)
    update, _ = train(order, client_data(), {})
    return len(codec.encode(update, ClientContext(order=order))), len(
        encode_broadcast(order)
    ) + len(encode_order(order))


def tables() -> Iterator[tuple[str, str]]:
    labels = tuple("abcd")
    lora, _ = load_task(ModelSettings(), Lora(r=8), Key(0), labels)
    tiny, _ = load_task(ModelSettings(), TinyLora(r=4, u=16), Key(0), labels)
    last = re.compile(r"layer\.5")

    def split(task: Task) -> tuple[str, ...]:
        units = [u for u in task.units if last.search(u.name) or u.is_head]
        return tuple(n for u in units for n in u.params)

    everything = tuple(lora.params)
    cases = [
        ("fedavg, LoRA r=8, dense", lora, everything, Backprop(), Fresh(), Dense()),
        ("spry, LoRA r=8, one layer, dense", lora, split(lora), Forward(), Fresh(), Dense()),
        (
            "spry, LoRA r=8, one layer, K=1, scalars",
            lora,
            split(lora),
            Forward(),
            Fresh(),
            Scalars(),
        ),
        ("spry, TinyLoRA, one layer, dense", tiny, split(tiny), Forward(), Fresh(), Dense()),
        (
            "spry, TinyLoRA, one layer, K=4, scalars",
            tiny,
            split(tiny),
            Forward(),
            Fresh(k=4),
            Scalars(),
        ),
        (
            "spry, TinyLoRA, one layer, basis mode, scalars",
            tiny,
            split(tiny),
            Forward(),
            Basis(),
            Scalars(),
        ),
    ]
    rows = []
    for title, task, names, engine, kind, codec in cases:
        up, down = bytes_of(task, names, engine, kind, codec)
        rows.append(
            (
                title,
                f"{up:,}",
                f"{down:,}",
                f"{up / float(rows[0][1].replace(',', '')):.4f}" if rows else "1",
            )
        )
    header = ("way of sending", "bytes up", "bytes down", "up, ratio to FedAvg")
    yield (
        f"Bytes per client and round (MiniLM, 4 classes, {STEPS} local steps, head included)",
        markdown(header, rows),
    )
