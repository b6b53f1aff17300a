"""Memory above the weights and time per step of every engine, relative to inference.

Models: RoBERTa-large sizes at reduced depth (2 layers, random weights: neither time nor memory
depends on their values), and the pretrained MiniLM. The first quarter of the blocks is trained
("early", the dearest place for forward mode) or the last ("late").
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.table import markdown, seconds
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Order
from forefed.data.examples import Examples
from forefed.directions import Fresh
from forefed.gradients import GradientEngine
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.finite_difference import FiniteDifference
from forefed.gradients.forward import Forward
from forefed.gradients.memory import measure_peak
from forefed.local.training import AssignedLoss
from forefed.models.adapters import Adapter, Lora, TinyLora
from forefed.models.load import load_task
from forefed.models.settings import ModelSettings
from forefed.models.task import Task, task_from_model

BATCH, LABELS = 8, ("a", "b", "c", "d")

ENGINES: list[tuple[str, GradientEngine]] = [
    ("backprop", Backprop(micro_batch=None)),
    ("backprop, 1 row at a time", Backprop(micro_batch=1)),
    ("checkpointed", Checkpointed(micro_batch=None)),
    ("checkpointed, 1 row at a time", Checkpointed(micro_batch=1)),
    ("forward, K=1", Forward()),
    ("forward, K=1, 1 row at a time", Forward(micro_batch=1)),
    ("forward, K=1, torch.func.jvp", Forward(micro_batch=None, ad="torch")),
    ("forward, K=4", Forward(tangents=4)),
    ("finite difference, K=1", FiniteDifference()),
]


def roberta(layers: int, adapter: Adapter, dtype: torch.dtype = torch.float32) -> Task:
    """RoBERTa-large's sizes with fewer layers and a small vocabulary."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=2000,
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=520,
        num_labels=len(LABELS),
    )
    with torch.random.fork_rng():
        model = RobertaForSequenceClassification(config).to(dtype)
    return task_from_model(model, adapter, Key(0), label_names=LABELS, base_name="roberta-sizes")


def batch_of(length: int, vocabulary: int) -> Batch:
    tokens = Key(1).integers(BATCH * length, vocabulary - 10).astype(np.int32) + 5
    offsets = np.arange(0, BATCH * length + 1, length)
    labels = Key(2).integers(BATCH, len(LABELS))
    examples = Examples(tokens, None, offsets, labels, np.zeros(BATCH, dtype=np.int64), pad_id=1)
    return examples.batch(range(BATCH))


def measure(task: Task, batch: Batch, part: str) -> list[tuple[object, ...]]:
    """One row per engine: memory and time relative to a plain forward pass."""
    depth = 1 + max(u.depth for u in task.units if not u.is_head)
    few = max(1, depth // 4)
    chosen = range(few) if part == "early" else range(depth - few, depth)
    units = [u for u in task.units if u.is_head or u.depth in chosen]
    names = tuple(n for u in units for n in u.params)
    params = trees.pick(task.params, names)
    body = sum(u.size for u in units if not u.is_head)

    def inference() -> torch.Tensor:
        with torch.no_grad():
            return task.loss(task.params, batch)

    base_time = seconds(inference)
    _, base_memory = measure_peak(inference)
    rows: list[tuple[object, ...]] = [
        ("inference", part, body, f"{base_memory / 1e6:.1f}", "1.00", "1.00")
    ]
    for title, engine in ENGINES:
        loss = AssignedLoss(engine.loss_of(task), task.params)
        k = 4 if "K=4" in title else 1
        directions = Fresh(k=k).of(Order(1, 1, 1, names, task.params))

        def step(engine=engine, loss=loss, directions=directions) -> object:
            return engine(loss, params, batch, directions, task.head)

        found = seconds(step)
        _, memory = measure_peak(step)
        rows.append(
            (
                title,
                part,
                body,
                f"{memory / 1e6:.1f}",
                f"{memory / base_memory:.2f}",
                f"{found / base_time:.2f}",
            )
        )
    return rows


HEADER = (
    "engine",
    "units",
    "adapter elements",
    "MB above weights",
    "memory / inference",
    "time / inference",
)


def tables() -> Iterator[tuple[str, str]]:
    large = roberta(2, Lora(r=1))
    rows = [r for part in ("early", "late") for r in measure(large, batch_of(128, 2000), part)]
    yield (
        "Engines, RoBERTa-large sizes, 2 layers, LoRA r=1, batch 8, length 128",
        markdown(HEADER, rows),
    )
    minilm, _ = load_task(ModelSettings(), TinyLora(r=4, u=16), Key(0), LABELS)
    rows = [r for part in ("early", "late") for r in measure(minilm, batch_of(64, 20000), part)]
    yield "Engines, MiniLM, TinyLoRA u=16, batch 8, length 64", markdown(HEADER, rows)
