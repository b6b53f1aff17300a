"""Prints docs/FAMILIES.md: ``python tests/families_page.py > docs/FAMILIES.md`` (three minutes).

The first table is checked by ``test_families.py``; the memory figures are measured here alone,
every family in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch

from forefed.core.keys import Key
from forefed.core.types import Batch, Order, Params
from forefed.directions import Fresh
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.dual import Dual, Pass, ReadAgain, recording
from forefed.gradients.forward import Forward
from forefed.gradients.memory import measure_peak
from forefed.models.adapters import Lora, TinyLora
from forefed.models.task import Task
from tiny import ALL_FAMILIES, ALL_KINDS, EAGER, moved, random_like, tiny_examples, tiny_task
from tiny_configs import Size

LARGER = Size(hidden=128, feed_forward=512, layers=4, positions=96, window=16)
LENGTHS = (64, 57, 64, 33, 50, 64, 12, 40)


@dataclass(frozen=True)
class Operators:
    """What the dual engine met in one model: operators with a rule, and without."""

    used: tuple[str, ...]
    fallbacks: tuple[str, ...]


def batch_of(family: str, causal: bool, lengths: tuple[int, ...] = ()) -> Batch:
    """Rows of these lengths, padded; seven of 3 to 11 tokens without."""
    examples = tiny_examples(
        causal=causal, types=family == "bert", lengths=lengths, ends=family == "t5"
    )
    return examples.batch(range(len(examples)))


@cache
def operators(family: str, causal: bool) -> Operators:
    """The operators of one pass over a tiny model, every body parameter perturbed."""
    task = tiny_task(family, TinyLora(r=2, u=3), causal, dtype=torch.float32)
    params = moved(task.params)
    given = given_to(task, params)
    keep = set()
    while True:
        record = Pass(keep=keep)
        try:
            with recording(record):
                task.loss(given, batch_of(family, causal))
        except ReadAgain as again:
            keep.add(again.operator)
        else:
            return Operators(tuple(sorted(record.used)), tuple(sorted(record.fallbacks)))


def given_to(task: Task, params: Params) -> Params:
    """One tangent on every parameter but the head's, which autograd follows."""
    along = random_like(params, Key(4))
    return {
        n: x.clone().requires_grad_() if n in task.head else Dual(torch.stack([x, along[n]]))
        for n, x in params.items()
    }


def compatibility() -> str:
    """The table that must be true at any time: families, what they run as, fallbacks."""
    lines = ["| family | as | attention | operators that fell back |", "|---|---|---|---|"]
    for family, kinds in _kinds().items():
        fallen = {name for kind in kinds for name in operators(*kind).fallbacks}
        as_ = "classifier" + (", language model" if len(kinds) > 1 else "")
        attention = "eager" if family in EAGER else "SDPA"
        lines.append(f"| {family} | {as_} | {attention} | {_names(fallen) or 'none'} |")
    return "\n".join(lines) + "\n"


def rules() -> str:
    """The operators that each family's code calls on dual tensors."""
    met = {
        family: {name for kind in kinds for name in operators(*kind).used}
        for family, kinds in _kinds().items()
    }
    everywhere = set.intersection(*met.values())
    lines = [f"In every family: {_names(everywhere)}.", "", "| family | and |", "|---|---|"]
    lines += [f"| {family} | {_names(used - everywhere)} |" for family, used in met.items()]
    return "\n".join(lines) + "\n"


def _kinds() -> dict[str, list[tuple[str, bool]]]:
    return {family: [kind for kind in ALL_KINDS if kind[0] == family] for family in ALL_FAMILIES}


def _names(operators: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(operators))


ENGINES = {
    "forward": Forward(micro_batch=None),
    "forward, K = 8": Forward(micro_batch=None, tangents=8),
    "torch.func.jvp": Forward(ad="torch", micro_batch=None),
    "checkpointed": Checkpointed(micro_batch=None),
    "backprop": Backprop(micro_batch=None),
}


def peaks(family: str) -> tuple[float, ...]:
    """Bytes above the weights: of inference, then of every engine over those of inference."""
    task = tiny_task(family, Lora(), dtype=torch.float32, size=LARGER)
    params, batch = moved(task.params, scale=0.01), batch_of(family, False, LENGTHS)

    def inference() -> float:
        with torch.no_grad():
            return float(task.loss(params, batch))

    plain = _peak(inference)
    ratios = []
    for name, engine in ENGINES.items():
        order = Order(1, 1, 1, tuple(params), params)
        directions = Fresh(k=8 if "8" in name else 1).of(order)
        loss = engine.loss_of(task)

        def step(engine=engine, loss=loss, directions=directions) -> object:
            return engine(loss, params, batch, directions, task.head)

        ratios.append(_peak(step) / plain)
    return (plain, *ratios)


def _peak(work: Callable[[], object]) -> int:
    work()  # caches, and the operators that must keep their input, are found once
    return measure_peak(work)[1]


def page() -> str:
    """The whole page."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        measured = pool.map(peaks, ALL_FAMILIES, chunksize=1)
    rows = []
    for family, (plain, *ratios) in zip(ALL_FAMILIES, measured, strict=True):
        cells = " | ".join(f"{r:.2f}" for r in ratios)
        rows.append(f"| {family} | {plain / 2**20:.2f} | {cells} |")
    return (
        HEAD
        + compatibility()
        + RULES
        + rules()
        + MEMORY.format(
            engines=" | ".join(ENGINES),
            dashes="---|" * (2 + len(ENGINES)),
            rows="\n".join(rows),
            tokens=len(LENGTHS) * max(LENGTHS),
            torch=version("torch").split("+")[0],
            transformers=version("transformers"),
            machine=platform.machine(),
        )
    )


HEAD = """# Model families

Made by `python tests/families_page.py > docs/FAMILIES.md`; `tests/test_families.py` fails when the
first table is no longer true.

Every family below is built from its own configuration class with random weights, wrapped by LoRA
and TinyLoRA, and run on ragged, padded batches. In float64 the slopes of `forward` equal
<gradient, direction> of backprop to 1e-9, with three tangents in one pass and with two passes over
micro-batches, and the head's gradient is exact; in float32 they equal those of `torch.func.jvp` to
1e-4. ALBERT's shared block is one block, whose units act at every depth; Mistral and ModernBERT are
tested with a window shorter than the text. T5 is tested as a classifier, on the model level: the
loader takes encoders and decoders only.

## Compatibility

The forward engine has a rule for the operators of these models. An operator without one falls back
to `torch.func.jvp` on that operator alone, and the run's record names it.

"""

RULES = """
## Rules used

"""

MEMORY = """
## Memory

Peak of live allocator bytes above the weights in one step, float32: for inference in MiB, for the
engines as a multiple of it. Hidden size 128, 4 blocks, vocabulary 50, 8 rows padded to 64 tokens
({tokens} tokens, no micro-batches), LoRA r = 1 on query and value of every block: the first block
is perturbed, so nothing is spared. At this size small things count (masks, the rotary embedding's
tables, softmax blocks); [BENCHMARKS](BENCHMARKS.md) has models of real size.

| family, as a classifier | inference, MiB | {engines} |
|{dashes}
{rows}

torch {torch}, transformers {transformers}, {machine}.
"""

if __name__ == "__main__":
    sys.stdout.write(page())
