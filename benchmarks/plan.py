"""The planner against the truth: predicted peaks and measured ones, and runs under a budget.

Depth: MiniLM (6 blocks) and a RoBERTa of 12 blocks are predicted from 2 and 4 blocks with random
weights, then measured as they are. Budgets: runs on the standard library's docstrings, whose texts
have all lengths; a run's largest step is compared with what was planned for its longest text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import markdown
from forefed.core.sizes import format_bytes
from forefed.models.settings import ModelSettings
from forefed.plan.measure import extrapolate, run_probe
from forefed.plan.plan import Row
from forefed.plan.scene import Job, Scene
from forefed.run import configure, run
from forefed.run.record import ROUNDS, read_json, read_lines

BUDGETS = ("102MB", "120MB", "150MB", "300MB", "4GB")


def tables() -> Iterator[tuple[str, str]]:
    header = ("model", "engine", "rows", "predicted", "measured", "off by", "said")
    with tempfile.TemporaryDirectory() as folder:
        scenes = [
            (Scene(model=ModelSettings(dtype="float32")), 6, None),
            (Scene(model=roberta(Path(folder)), batch=4), 12, 12),
        ]
        rows = [line for scene in scenes for line in against_truth(*scene)]
    yield "Planner: peak above the weights, predicted from 2 and 4 blocks", markdown(header, rows)
    header = ("budget", "engine chosen", "rows", "planned", "largest step of the run", "fits")
    yield (
        "Planner: MiniLM within a budget, `pydocs`, batch 8, texts up to 512 tokens (weights and "
        "step; texts of most batches are shorter than planned for)",
        markdown(header, list(within_budgets())),
    )


def roberta(folder: Path) -> ModelSettings:
    """A configuration of 12 blocks; nothing else of a model is needed."""
    from transformers import RobertaConfig

    RobertaConfig(
        vocab_size=2000,
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=520,
    ).save_pretrained(folder)
    return ModelSettings(name=str(folder), dtype="float32")


def against_truth(scene: Scene, depth: int, layers: int | None) -> Iterator[tuple[object, ...]]:
    """Rows of one model; ``layers``: None for the pretrained model itself."""
    guess = extrapolate(scene, "float32", depth, True, print, run_probe)
    engines = guess.measured.engines
    truth = run_probe(Job(scene=scene, layers=layers, engines=engines))
    name = "MiniLM" if layers is None else f"RoBERTa, {layers} blocks of 512"
    steps = zip(engines, guess.measured.steps, truth.steps, guess.errors, strict=True)
    for engine, predicted, measured, error in steps:
        row = Row(engine, "float32", measured.peak, 0, 0, error, 0, 0, 0, 0)
        off = predicted.peak / measured.peak - 1
        peaks = (format_bytes(predicted.peak), format_bytes(measured.peak))
        yield (name, row.name, row.rows, *peaks, f"{off:+.1%}", f"{error:.1%}")


def within_budgets() -> Iterator[tuple[object, ...]]:
    for budget in BUDGETS:
        with tempfile.TemporaryDirectory() as folder:
            sets = [f"out='{folder}'", "engine=auto", f"memory={budget}", *SETTINGS]
            result = run(configure(sets=sets))
            (group,) = read_json(result.folder / "plan.json")["groups"]
            weights = read_json(result.folder / "environment.json")["model"]["weights_bytes"]
            peaks = [
                line["memory"]["peak_above_weights"] for line in read_lines(result.folder, ROUNDS)
            ]
        largest = weights + max(p for p in peaks if p is not None)
        yield (
            budget,
            group["engine"]["kind"],
            group["engine"]["micro_batch"] or "all",
            format_bytes(group["total"]),
            format_bytes(largest),
            "yes" if largest <= group["total"] + group["spare"] else "no",
        )


SETTINGS = (
    "model.dtype=float32",
    "data.max_length=512",
    "partition.clients=40",
    "cohort=4",
    "rounds=6",
    "client.max_steps=1",
    "evaluate.every=100",
    "data.limit=600",
)
