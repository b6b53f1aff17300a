"""Measurements for a plan: which processes to start, and what their figures say about full depth.

A shallow model is measured as it is. A deep one is measured at two depths, and every figure is
taken as a straight line in the depth: each block holds and does the same. A third depth says by how
much the line misses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forefed.core.errors import UserError
from forefed.models.objectives import objective_of
from forefed.models.shell import check_length, depth_of, load_config
from forefed.plan.scene import Job, Measured, Scene, Step, units_of, with_precision

SHALLOW = 6
"""Blocks up to which the model itself is measured."""
PROBED = (2, 4, 3)
"""Depths of the line, and of its check."""

Say = Callable[[str], None]
Prober = Callable[[Job], Measured]


@dataclass(frozen=True)
class Figures:
    """One precision at full depth."""

    precision: str
    measured: Measured
    errors: tuple[float, ...]
    """By way: how far the line misses the peak at a depth it was not drawn through, relative;
    0 where nothing was extrapolated."""


def run_probe(job: Job) -> Measured:
    """The job in a fresh process.

    Raises:
        UserError: the model cannot be loaded, or the process died (of memory, mostly).
    """
    done = subprocess.run(
        [sys.executable, "-m", "forefed.plan.probe"],
        input=job.model_dump_json(),
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode == 0:
        return Measured.model_validate_json(done.stdout)
    lines = done.stderr.strip().splitlines() or ["killed"]
    if done.returncode < 0 or "MemoryError" in lines[-1]:
        reason = f"it was killed (signal {-done.returncode}): out of memory, most likely"
    else:
        reason = lines[-1].removeprefix("forefed.core.errors.UserError: ")
    raise UserError(f"plan: measuring '{job.scene.model.name}' failed: {reason}")


def measure(scene: Scene, precisions: Sequence[str], say: Say, probe: Prober) -> list[Figures]:
    """All candidates in every precision; the first one is compared thoroughly."""
    config = load_config(scene.model, objective_of(scene.label_names, scene.head).outputs)
    check_length(config, scene.seq, "seq")
    depth = depth_of(config)
    figures = []
    for i, precision in enumerate(precisions):
        there = scene.model_copy(update={"model": with_precision(scene.model, precision)})
        figures.append(_at_depth(there, precision, depth, i == 0, say, probe))
    return figures


def _at_depth(
    scene: Scene, precision: str, depth: int, thorough: bool, say: Say, probe: Prober
) -> Figures:
    if depth <= SHALLOW:
        say(f"measuring in {precision}")
        measured = probe(Job(scene=scene, thorough=thorough))
        return Figures(precision, measured, (0.0,) * len(measured.steps))
    return extrapolate(scene, precision, depth, thorough, say, probe)


def extrapolate(
    scene: Scene, precision: str, depth: int, thorough: bool, say: Say, probe: Prober
) -> Figures:
    """Full depth from a few blocks with random weights."""
    low, high, between = PROBED
    found: dict[int, Measured] = {}
    ways = None
    for layers in PROBED:
        say(f"measuring in {precision}: {layers} of {depth} blocks")
        job = Job(scene=scene, layers=layers, thorough=thorough, ways=ways)
        found[layers] = probe(job)
        ways = found[low].ways
    full = _line(found[low], low, found[high], high, depth)
    some = found[low].units * max(1, depth // 8)
    units = units_of(scene, found[low].all_units * depth // low) or some
    elements = round(found[low].elements / max(found[low].units, 1) * units)
    check = _line(found[low], low, found[high], high, between)
    errors = tuple(
        abs(guess.peak / max(true.peak, 1) - 1)
        for guess, true in zip(check.steps, found[between].steps, strict=True)
    )
    full = full.model_copy(update={"units": units, "elements": elements})
    return Figures(precision, full, errors)


def _line(a: Measured, x: int, b: Measured, y: int, at: int) -> Measured:
    """The straight line through two depths, at a third one."""

    def line(p: float, q: float) -> float:
        return p + (q - p) * (at - x) / (y - x)

    def step(p: Step, q: Step) -> Step:
        return Step(
            peak=round(line(p.peak, q.peak)),
            rss=round(line(p.rss, q.rss)),
            seconds=max(line(p.seconds, q.seconds), 1e-6),
        )

    return b.model_copy(
        update={
            "blocks": at,
            "weights": round(line(a.weights, b.weights)),
            "base_rss": a.base_rss,
            "inference": step(a.inference, b.inference),
            "steps": tuple(step(p, q) for p, q in zip(a.steps, b.steps, strict=True)),
        }
    )
