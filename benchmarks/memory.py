"""What a step of a language model takes: engines, and weights in memory or in a map.

Each kind of weights is a process of its own. "above": live bytes above the weights; "total": with
those that are resident. "RSS": of the whole process during a step, less that of a process with the
same libraries, tokeniser and model's shape and no weights. Time: of the processor, the quickest of
some steps. One row, random tokens, LoRA r = 8 on query and value of all blocks, bfloat16.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import markdown
from forefed.core.keys import Key
from forefed.core.types import Batch
from forefed.gradients.backprop import Backprop, Checkpointed
from forefed.gradients.memory import measure_peak, resident_bytes
from forefed.gradients.structured import Structured
from forefed.models.adapters import Lora
from forefed.models.load import load_task
from forefed.models.mapped import filled, write
from forefed.models.pages import Pages
from forefed.models.quantised import Scheme, weights_bytes
from forefed.models.settings import ModelSettings
from forefed.models.task import Task, task_from_model
from forefed.plan.probe import _forget_peak_rss, _peak_rss, _release_memory

EXACT = {"backprop": Backprop(), "checkpointed": Checkpointed(), "structured": Structured()}
SHAPES: dict[str, dict[str, int]] = {
    "0.5 B (Qwen2.5's sizes)": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5 B (Qwen2.5's sizes)": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
WORDS = 151_936
HEADER = ("weights", "engine", "tokens", "above", "total", "RSS", "time")


def tables() -> Iterator[tuple[str, str]]:
    smol = {"name": "smollm2", "dtype": "bfloat16", "attention": "weights"}
    rows = []
    for tokens, ways in ((128, WAYS), (512, WAYS[:1])):
        whole: dict[str, float] = {}
        for how in ways:
            settings, said = {**smol, **how}, " ".join(how.values()) or "bfloat16"
            if "weights" in how:
                child({"settings": settings, "tokens": 8, "engines": []})  # makes the map
            found = child({"settings": settings, "tokens": tokens, "engines": [*EXACT]})
            for engine in EXACT:
                whole.setdefault(engine, found[engine]["seconds"])
                rows.append(line(said, engine, tokens, found[engine], whole))
    yield "Memory of a step: SmolLM2-135M", markdown(HEADER, rows)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "map.safetensors")
        for (name, shape), scheme in product(SHAPES.items(), ("int8", "int4")):
            job = {"shape": shape, "place": place, "scheme": scheme}
            child({**job, "make": True})
            found = child({**job, "tokens": 128, "engines": [*EXACT]})
            for engine in EXACT:
                rows.append(line(f"{name}, {scheme} mapped", engine, 128, found[engine], {}))
    title = "Memory of a step: random weights of larger shapes, mapped"
    yield title, markdown((*HEADER[:-1], "seconds"), rows)


WAYS: tuple[dict[str, str], ...] = (
    {},
    {"quantise": "int8", "weights": "mapped"},
    {"quantise": "int4", "weights": "mapped"},
)


def line(
    weights: str, engine: str, tokens: int, found: dict[str, float], whole: dict[str, float]
) -> tuple[object, ...]:
    megabytes = [f"{found[x] / 1e6:.1f} MB" for x in ("above", "total")]
    seconds = found["seconds"]
    ratio = f"{seconds:.2f} s ({seconds / whole[engine]:.2f})" if whole else f"{seconds:.2f} s"
    return (weights, engine, tokens, *megabytes, f"{found['rss'] / 1e6:.0f} MB", ratio)


def child(job: dict[str, Any]) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    print(job, result, flush=True)
    return result


def measured(job: dict[str, Any]) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    if job.get("make"):
        make(job["shape"], Path(job["place"]), job["scheme"])
        return {}
    before, task = loaded(job)
    ids = 3 + torch.as_tensor(Key(1).integers(job["tokens"], 40_000))[None]
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)
    result: dict[str, dict[str, float]] = {}
    for name in job["engines"]:
        engine = EXACT[name]
        loss = engine.loss_of(task)
        engine(loss, task.params, batch)  # looks at the blocks, fills buffers
        _release_memory()
        _forget_peak_rss()
        times = []
        for _ in range(3):
            started = time.process_time()
            engine(loss, task.params, batch)
            times.append(time.process_time() - started)
        rss = _peak_rss() - before
        _, above = measure_peak(lambda e=engine, f=loss: e(f, task.params, batch))
        shared = {id(w): w for m in task.model.modules() if (w := getattr(m, "workspace", None))}
        resident = weights_bytes(task.model) + sum(w.buffer.nbytes for w in shared.values())
        figures = {"rss": rss, "seconds": min(times), "above": above, "total": above + resident}
        result[name] = {n: float(x) for n, x in figures.items()}
    return result


def loaded(job: dict[str, Any]) -> tuple[int, Task]:
    """Resident memory before there are weights, and the task."""
    if "settings" in job:
        from forefed.models import load
        from forefed.models.objectives import objective_of

        settings = ModelSettings.model_validate(job["settings"])
        import peft

        load._look_closely(settings, objective_of(None, None))
        _release_memory()
        before = resident_bytes()
        return before, load_task(settings, Lora(r=8, alpha=8), Key(0), None)[0]
    with torch.device("meta"):
        shape = model_of(job["shape"])
    import peft  # noqa: F401

    _release_memory()
    before, pages = resident_bytes(), Pages(Path(job["place"]))
    model = filled(shape, pages, torch.bfloat16)
    adapter = Lora(r=8, alpha=8)
    how: dict[str, Any] = {"quantise": job["scheme"], "pages": pages}
    return before, task_from_model(model, adapter, Key(0), label_names=None, base_name="x", **how)


def model_of(shape: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=WORDS, tie_word_embeddings=True, **shape)
    return LlamaForCausalLM(config).eval().to(torch.bfloat16)


def make(shape: dict[str, int], place: Path, scheme: Scheme) -> None:
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = model_of(shape)
    model = model.to_empty(device="cpu")
    for x in model.parameters():
        x.data.uniform_(-0.03, 0.03)
    rotary = type(model.model.rotary_emb)(model.config)
    model.model.rotary_emb = rotary
    model.tie_weights()
    write(place, model, scheme, {}, True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(measured(json.loads(sys.argv[1]))))
