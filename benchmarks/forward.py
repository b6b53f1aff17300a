"""The forward engine against its targets: RoBERTa-large sizes, batch 8, LoRA r = 1 and the head.

Memory is measured on 2 layers (it does not grow with the depth, but for the weights), time on 8 at
128 tokens and 4 at 512. "early": the first layer is trained, "late": the last, "middle": the one in
between. The public kind is ``torch.func.jvp`` with plain attention over the whole batch, one
direction over adapters and head together; inference is a plain forward pass with SDPA.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.engines import batch_of, roberta
from benchmarks.table import markdown, seconds
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Order, Params
from forefed.data.examples import Examples
from forefed.directions import Basis, Directions, Fresh
from forefed.gradients import GradientEngine
from forefed.gradients.backprop import Checkpointed
from forefed.gradients.forward import Forward
from forefed.gradients.memory import measure_peak
from forefed.local.training import AssignedLoss
from forefed.models.adapters import Lora, TinyLora
from forefed.models.task import Task, task_from_model

PUBLIC = Forward(ad="torch", micro_batch=None, head="perturbed")
OURS = Forward(micro_batch=1)


@dataclass(frozen=True)
class Scene:
    """A task, a batch, and the layer that is trained."""

    task: Task
    batch: Batch
    depth: int | None = None

    def work(
        self,
        engine: GradientEngine,
        batch: Batch | None = None,
        kind: Directions = Fresh(),  # noqa: B008 (frozen)
    ) -> Callable[[], Any]:
        """One step of an engine; ``depth`` None: inference is meant, see ``inference``."""
        task = self.task
        units = [u for u in task.units if u.is_head or u.depth == self.depth]
        names = tuple(n for u in units for n in u.params)
        params: Params = trees.pick(task.params, names)
        base = engine.loss_of(task)
        loss = AssignedLoss(base, task.params)
        directions = kind.of(Order(1, 1, 1, names, task.params))
        return lambda: engine(loss, params, batch or self.batch, directions, task.head)

    def inference(self) -> Callable[[], Any]:
        def work() -> torch.Tensor:
            with torch.no_grad():
                return self.task.loss(self.task.params, self.batch)

        return work


def peak(work: Callable[[], Any]) -> float:
    work()
    return measure_peak(work)[1] / 1e6


def verdict(found: float, target: float) -> str:
    return "met" if found <= target else f"missed by {found / target - 1:.0%}"


Row = tuple[str, str, str, str, str]


def row(what: str, ours: str, other: str, ratio: float, target: float) -> Row:
    return what, ours, other, f"{ratio:.3f} (target {target:.3f})", verdict(ratio, target)


def memory_rows() -> Iterator[Row]:
    for dtype, name, targets in (
        (torch.float32, "float32", (1 / 10, 1 / 20)),
        (torch.bfloat16, "bfloat16", (1 / 9, 1 / 20)),
    ):
        task = roberta(2, Lora(r=1), dtype)
        for length, target in zip((128, 512), targets, strict=True):
            scene = Scene(task, batch_of(length, 2000), 0)
            ours, other = peak(scene.work(OURS)), peak(scene.work(PUBLIC))
            yield row(
                f"memory against torch.func.jvp, {name}, {length} tokens, early",
                f"{ours:.1f} MB",
                f"{other:.1f} MB",
                ours / other,
                target,
            )
            if name == "float32" and length == 512:
                base = peak(scene.inference())
                yield row(
                    "memory against inference, 512 tokens",
                    f"{ours:.1f} MB",
                    f"{base:.1f} MB",
                    ours / base,
                    1 / 4,
                )


def basis_memory_rows() -> Iterator[Row]:
    task = roberta(2, TinyLora(r=2, u=4, targets="attention-qv"))
    scene = Scene(task, batch_of(128, 2000), 0)
    basis = Forward(tangents=8, micro_batch=1)
    rival = Checkpointed(micro_batch=1)
    ours, other = peak(scene.work(basis, kind=Basis())), peak(scene.work(rival))
    yield row(
        "memory of basis mode, 8 dimensions at once, against checkpointed one-row backprop, early",
        f"{ours:.1f} MB",
        f"{other:.1f} MB",
        ours / other,
        1 / 2,
    )
    few = Forward(tangents=1, micro_batch=1)
    ours = peak(scene.work(few, kind=Basis()))
    yield row(
        "the same, one dimension after the other",
        f"{ours:.1f} MB",
        f"{other:.1f} MB",
        ours / other,
        1 / 2,
    )
    t_basis, t_rival = seconds(scene.work(basis, kind=Basis())), seconds(scene.work(rival))
    yield (
        "its time (2 layers)",
        f"{t_basis:.2f} s",
        f"{t_rival:.2f} s",
        f"{t_basis / t_rival:.2f}",
        "reported",
    )


def decoder_rows() -> Iterator[Row]:
    task = decoder()
    scene = Scene(task, token_batch(512, 32_000), 0)
    engine = Forward(micro_batch=1)
    public = Forward(ad="torch", micro_batch=None)
    ours, other = peak(scene.work(engine)), peak(Scene(whole(task), scene.batch, 0).work(public))
    yield row(
        "memory, decoder with a vocabulary of 32,000, 512 tokens, against torch.func.jvp",
        f"{ours:.1f} MB",
        f"{other:.1f} MB",
        ours / other,
        1 / 30,
    )


def decoder() -> Task:
    """Two blocks of a Llama of 512, with a large vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config)
    return task_from_model(model, Lora(r=1), Key(0), label_names=None, base_name="llama-sizes")


def whole(task: Task) -> Task:
    """The task with the logits of all tokens at once, as models compute them by themselves."""
    from dataclasses import replace

    return replace(task, loss=replace(task.loss, tail=None))


def token_batch(length: int, vocabulary: int) -> Batch:
    n = 8
    tokens = Key(1).integers(n * length, vocabulary - 10).astype(np.int32) + 5
    offsets, zeros = np.arange(0, n * length + 1, length), np.zeros(n, dtype=np.int64)
    return Examples(tokens, None, offsets, zeros, zeros, pad_id=1, causal=True).batch(range(n))


def time_rows() -> Iterator[Row]:
    for length, layers, target in ((128, LAYERS, 0.65), (512, max(2, LAYERS // 2), 0.5)):
        task = roberta(layers, Lora(r=1))
        batch = batch_of(length, 2000)
        early = Scene(task, batch, 0)
        base = seconds(early.inference())
        ours = seconds(early.work(Forward()))
        public = seconds(early.work(PUBLIC))
        yield row(
            f"time against torch.func.jvp, {length} tokens, early, {layers} layers",
            f"{ours:.2f} s",
            f"{public:.2f} s",
            ours / public,
            target,
        )
        for place, depth, limit in (("early", 0, 1.9), ("late", layers - 1, 0.95)):
            found = ours if place == "early" else seconds(Scene(task, batch, depth).work(Forward()))
            yield row(
                f"time against inference, {length} tokens, {place}",
                f"{found:.2f} s",
                f"{base:.2f} s",
                found / base,
                limit,
            )
        if length == 128:
            yield from _cached_row(task, batch, layers // 2, base)
            yield from _many_rows(task, batch, layers, public)


def _cached_row(task: Task, batch: Batch, depth: int, base: float) -> Iterator[Row]:
    from forefed.models.prefix import FrozenPrefix, PrefixCache

    units = [u for u in task.units if u.is_head or u.depth == depth]
    names = tuple(n for u in units for n in u.params)
    prefix = FrozenPrefix(task, PrefixCache(2**33, None))
    loss = AssignedLoss(prefix.loss(task.loss, names, recurring=True), task.params)
    engine = Forward()
    directions = Fresh().of(Order(1, 1, 1, names, task.params))
    params = trees.pick(task.params, names)
    found = seconds(lambda: engine(loss, params, batch, directions, task.head))
    yield row(
        "time against inference, 128 tokens, middle with cached prefix",
        f"{found:.2f} s",
        f"{base:.2f} s",
        found / base,
        0.9,
    )


def _many_rows(task: Task, batch: Batch, layers: int, public: float) -> Iterator[Row]:
    four = seconds(Scene(task, batch, 0).work(Forward(tangents=4), kind=Fresh(k=4)))
    yield row(
        "time of K = 4 against four slopes of the public kind, 128 tokens, early",
        f"{four:.2f} s",
        f"{4 * public:.2f} s",
        four / (4 * public),
        0.35,
    )
    tiny = roberta(layers, TinyLora(r=2, u=8, targets="attention-qv"))
    middle = Scene(tiny, batch, layers // 2)
    public_middle = seconds(middle.work(PUBLIC))
    basis = seconds(middle.work(Forward(tangents=16), kind=Basis()))
    yield row(
        "time of basis mode, 16 dimensions of a middle layer, against 16 slopes of the public kind",
        f"{basis:.2f} s",
        f"{16 * public_middle:.2f} s",
        basis / (16 * public_middle),
        0.3,
    )


LAYERS = int(os.environ.get("FOREFED_BENCH_LAYERS", "8"))
HEADER = ("what", "ours", "the other", "ratio", "verdict")


def tables() -> Iterator[tuple[str, str]]:
    yield (
        "The forward engine's memory (RoBERTa-large sizes, 2 layers, batch 8, LoRA r=1)",
        markdown(HEADER, [*memory_rows(), *basis_memory_rows(), *decoder_rows()]),
    )
    yield (
        f"The forward engine's time (RoBERTa-large sizes, {LAYERS} layers, batch 8, LoRA r=1)",
        markdown(HEADER, list(time_rows())),
    )
