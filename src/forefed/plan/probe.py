"""One measurement in a process of its own: ``python -m forefed.plan.probe`` reads a ``Job`` from
standard input and writes what it ``Measured`` to standard output, both as JSON.

A fresh process, because resident memory never shrinks honestly in an old one. The figures do not
depend on the values of weights or tokens, so a deep model is built at a few of its blocks, with
random weights, from nothing but its configuration.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Order, Params, Unit
from forefed.data.examples import Examples
from forefed.gradients.memory import measure_peak, resident_bytes
from forefed.models.load import load_task
from forefed.models.quantised import weights_bytes
from forefed.models.shell import random_task
from forefed.models.task import Task
from forefed.plan.scene import WORDS, Job, Measured, Scene, Step, Way, candidates, units_of


def main() -> None:
    job = Job.model_validate_json(sys.stdin.read())
    sys.stdout.write(measure(job).model_dump_json())


def measure(job: Job) -> Measured:
    """Runs every way of the job once for memory and once for time."""
    scene, base_rss = job.scene, resident_bytes()
    task = build(scene, job.layers)
    names = assigned(task, scene)
    params = trees.pick(task.params, names)
    batch = batch_of(scene, task)

    def inference() -> torch.Tensor:
        with torch.no_grad():
            return task.loss(task.params, batch)

    elements = sum(x.numel() for n, x in params.items() if n not in task.head)
    ways = job.ways
    if ways is None:
        ways = tuple(candidates(scene, elements, job.thorough))
    inference()  # the first pass fills buffers that stay
    before = min((_step(inference, task.device) for _ in range(2)), key=lambda s: s.seconds)
    shared = {id(w): w for m in task.model.modules() if (w := getattr(m, "workspace", None))}
    return Measured(
        blocks=len(task.loss_recomputed.blocks),
        weights=weights_bytes(task.model) + sum(w.buffer.nbytes for w in shared.values()),
        all_units=sum(1 for u in task.units if not u.is_head),
        units=sum(1 for u in task.units if not u.is_head and u.params[0] in params),
        elements=elements,
        head_elements=sum(x.numel() for n, x in params.items() if n in task.head),
        base_rss=base_rss,
        inference=before,
        ways=ways,
        steps=tuple(_step_of(way, task, params, batch) for way in ways),
    )


def build(scene: Scene, layers: int | None) -> Task:
    labels, head = scene.label_names, scene.head
    if layers is None:
        return load_task(scene.model, scene.adapter, Key(0), labels, head)[0]
    return random_task(scene.model, scene.adapter, Key(0), labels, layers, head)


def assigned(task: Task, scene: Scene) -> tuple[str, ...]:
    """The parameters of the first or last units, and of the head."""
    body = [u for u in task.units if not u.is_head]
    chosen = _units(body, len(task.loss_recomputed.blocks), scene)
    head = [u for u in task.units if u.is_head]
    return tuple(n for u in [*chosen, *head] for n in u.params)


def _units(body: list[Unit], blocks: int, scene: Scene) -> list[Unit]:
    count = units_of(scene, len(body))
    if count is not None:
        return body[:count] if scene.place == "early" else body[-count:]
    few = max(1, blocks // 8)
    depths = sorted({u.depth for u in body})
    near = depths[:few] if scene.place == "early" else depths[-few:]
    return [u for u in body if u.depth in near]


def batch_of(scene: Scene, task: Task) -> Batch:
    """Random tokens; all texts but one are a token short, because a padding mask costs memory too
    (models leave it out where no text is padded)."""
    n = scene.batch
    lengths = np.full(n, scene.seq - 1)
    lengths[0] = scene.seq
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vocabulary = task.model.config.get_text_config().vocab_size
    tokens = 3 + Key(1).integers(int(offsets[-1]), max(vocabulary - 3, 1)).astype(np.int32)
    zeros = np.zeros(n, dtype=np.int64)
    labels = zeros
    if scene.labels == "spans":
        labels = np.zeros((n, 2), dtype=np.int64)
    elif scene.labels:
        labels = Key(2).integers(n, task.n_labels)
    choices = tuple(range(WORDS)) if scene.labels == "words" else None
    examples = Examples(
        tokens % vocabulary,
        None,
        offsets,
        labels,
        zeros,
        pad_id=1,
        causal=task.causal,
        choices=choices,
    )
    return examples.batch(range(n))


def _step_of(way: Way, task: Task, params: Params, batch: Batch) -> Step:
    """One step; of many like passes no more than a few (``GradientEngine.sample``)."""
    engine = way.engine
    loss = _Loss(engine.loss_of(task), {n: x for n, x in task.params.items() if n not in params})
    order = Order(1, 1, 1, tuple(params), task.params)
    body = trees.pick(params, engine.perturbed(list(params), task.head))
    directions = way.directions.of(order, parts=way.parts) if body else None
    few, along = engine.sample(loss, batch, directions, body)
    step = _step(lambda: engine(loss, params, few, along, task.head), task.device)
    return step.model_copy(update={"seconds": step.seconds * batch.size / few.size})


class _Loss:
    """The loss of the client's parameters; all others are constants."""

    def __init__(self, loss: Any, fixed: Params):
        self.loss, self.fixed = loss, fixed

    def __call__(self, params: Params, batch: Batch) -> torch.Tensor:
        result: torch.Tensor = self.loss({**self.fixed, **params}, batch)
        return result

    def weight(self, batch: Batch) -> int:
        return int(self.loss.weight(batch))


def _step(work: Callable[[], Any], device: torch.device) -> Step:
    """Memory and time of one run: recording allocations costs a few per cent of the time."""

    def timed() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    _release_memory()
    _forget_peak_rss()
    seconds, peak = measure_peak(timed, device)
    return Step(peak=peak, rss=_peak_rss(), seconds=seconds)


def _release_memory() -> None:
    """Hands what the last engine freed back to the system (glibc), or the next one's resident
    memory would count it too."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _forget_peak_rss() -> None:
    """Resets the kernel's high-water mark (Linux); elsewhere the current size is reported."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes()


if __name__ == "__main__":
    main()
