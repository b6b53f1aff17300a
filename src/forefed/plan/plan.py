"""A plan: what every way of getting a gradient costs on this machine, and which one to take.

Noise. An engine's estimate e of the gradient g has E e = g and E|e|^2 = (1 + v) |g|^2: v = 0 for
exact engines, (d - 1) / K for K random signs over the d elements that one client perturbs
(``docs/plan.md``). On a smooth loss the best step is 1 / (1 + v) as long, and gains 1 / (1 + v) as
much; so costs are compared times 1 + v: what one exact step's progress costs. The noise of the
mini-batch is the same for all and left out, which flatters the exact engines a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from forefed.core.errors import UserError
from forefed.core.sizes import format_bytes, parse_bytes
from forefed.directions import Directions
from forefed.gradients import GradientEngine
from forefed.gradients.engine import SlopeEngine
from forefed.gradients.forward import Forward
from forefed.models.load import choose_dtype
from forefed.plan.measure import Figures, Prober, Say, measure, run_probe
from forefed.plan.scene import Measured, Scene, Way

CLEARLY = 0.5
"""A lower precision is taken over a fitting full one only for less than half of the time."""


@dataclass(frozen=True)
class Row:
    """One way with one micro-batch in one precision. Bytes and seconds are of one local step."""

    way: Way
    precision: str
    peak: int
    """Live bytes above the weights, at most."""
    total: int
    """The same with the weights: what a budget is compared with."""
    rss: int
    """Resident memory of the whole process, libraries included."""
    error: float
    """Of ``peak``, where it was extrapolated over depth: what a check at another depth missed."""
    time: float
    """Seconds over those of a plain forward pass of the batch in the first precision."""
    noise: float
    """v above."""
    forwards: float
    """Forward-equivalents per example."""
    bytes_up: int
    """Of one client's answer: an exact gradient's elements, or the slopes; head included."""

    @property
    def progress_time(self) -> float:
        """Time to one exact step's expected progress."""
        return self.time * (1 + self.noise)

    @property
    def engine(self) -> GradientEngine:
        return self.way.engine

    @property
    def directions(self) -> Directions:
        return self.way.directions

    @property
    def name(self) -> str:
        """``forward, K = 4``."""
        return self.way.name

    @property
    def rows(self) -> str:
        """The micro-batch, for a sentence."""
        return {"auto": "about 512 tokens", None: "whole batch"}.get(
            self.engine.micro_batch,  # type: ignore[arg-type]
            f"{self.engine.micro_batch} at a time",
        )


@dataclass(frozen=True)
class Plan:
    """What was asked, what was measured, and the advice."""

    scene: Scene
    memory: int | None
    weights: dict[str, int]
    """Bytes by precision."""
    base_rss: int
    """Resident memory of Python with its libraries."""
    blocks: int
    elements: int
    head_elements: int
    inference_seconds: float
    inference_peak: int
    rows: tuple[Row, ...]
    recommended: Row
    reason: str
    smaller: tuple[str, ...]
    """What a smaller adapter would change, in sentences."""

    def to_json(self) -> dict[str, Any]:
        def row(r: Row) -> dict[str, Any]:
            numbers = {k: v for k, v in asdict(r).items() if k != "way"}
            settings = r.way.model_dump(mode="json")
            return {**settings, **numbers, "progress_time": r.progress_time}

        rest = {k: getattr(self, k) for k in self.__dataclass_fields__}
        rest["scene"] = self.scene.model_dump(mode="json")
        rest["rows"] = [row(r) for r in self.rows]
        rest["recommended"] = row(self.recommended)
        return rest


def plan(
    scene: Scene,
    memory: int | str | None = None,
    *,
    precisions: Sequence[str] | None = None,
    say: Say = lambda _: None,
    probe: Prober = run_probe,
) -> Plan:
    """Measure this machine and choose.

    Args:
        scene: model, adapter, batch, sequence length and the units of one client.
        memory: what weights and a step may take together ("300MB"; libraries come on top, see
            ``Plan.base_rss``); None: no limit.
        precisions: number formats to compare (None: the model's own and int8 weights).
        say: told what is being measured, for progress.
        probe: how a measurement is made (tests give their own).

    Raises:
        UserError: no such model, texts longer than it takes, a budget that nothing fits.
    """
    budget = None if memory is None else parse_bytes(memory, "memory")
    figures = measure(scene, precisions or (own_precision(scene), "int8"), say, probe)
    rows = tuple(row for found in figures for row in _rows(found, figures[0].measured))
    chosen, reason = choose(rows, budget)
    first = figures[0].measured
    return Plan(
        scene=scene,
        memory=budget,
        weights={f.precision: f.measured.weights for f in figures},
        base_rss=first.base_rss,
        blocks=first.blocks,
        elements=first.elements,
        head_elements=first.head_elements,
        inference_seconds=first.inference.seconds,
        inference_peak=first.inference.peak,
        rows=rows,
        recommended=chosen,
        reason=reason,
        smaller=smaller(rows, first),
    )


def own_precision(scene: Scene) -> str:
    """The number format of the frozen weights as the scene has it."""
    if scene.model.quantise != "none":
        return scene.model.quantise
    return str(choose_dtype(scene.model)).removeprefix("torch.")


def _rows(found: Figures, first: Measured) -> list[Row]:
    measured, rows = found.measured, []
    for way, step, error in zip(measured.ways, measured.steps, found.errors, strict=True):
        passes = passes_of(way, measured.elements)
        rows.append(
            Row(
                way=way,
                precision=found.precision,
                peak=step.peak,
                total=measured.weights + step.peak,
                rss=step.rss,
                error=error,
                time=step.seconds * passes / first.inference.seconds,
                noise=way.noise(measured.elements),
                forwards=forwards_of(way, measured.elements),
                bytes_up=4 * (way.slopes(measured.elements) + measured.head_elements),
            )
        )
    return rows


def passes_of(way: Way, elements: int) -> int:
    """Passes of a step over those that were measured (``SlopeEngine.at_once``)."""
    if isinstance(way.engine, SlopeEngine):
        return -(-way.slopes(elements) // (way.engine.at_once * way.parts))
    return 1


def forwards_of(way: Way, elements: int) -> float:
    """Forward-equivalents per example."""
    if isinstance(way.engine, SlopeEngine):
        return way.engine.passes(way.slopes(elements), True)
    return getattr(way.engine, "forward_equivalents", 1.0)


def choose(rows: Sequence[Row], budget: int | None) -> tuple[Row, str]:
    """The quickest row, by time to equal progress, that fits; and why.

    Raises:
        UserError: nothing fits; names the smallest budget that works.
    """
    fitting = [r for r in rows if budget is None or r.total <= budget]
    if not fitting:
        least = min(rows, key=lambda r: r.total)
        raise UserError(
            f"memory = {format_bytes(budget or 0)} is too small: the least that works here is "
            f"{format_bytes(least.total)} ({least.name}, {least.rows}, {least.precision}: "
            f"{format_bytes(least.total - least.peak)} of weights and {format_bytes(least.peak)} "
            "above them). Raise memory, or take a smaller model, shorter texts or quantised "
            "weights (model.quantise = 'int4')"
        )
    quickest = min(fitting, key=lambda r: r.progress_time)
    own = [r for r in fitting if r.precision == rows[0].precision]
    best = min(own, key=lambda r: r.progress_time) if own else quickest
    if quickest.progress_time < CLEARLY * best.progress_time:
        best = quickest
    return best, _reason(best, rows, budget)


def _reason(best: Row, rows: Sequence[Row], budget: int | None) -> str:
    takes = f"it takes {format_bytes(best.total)} with the weights"
    if budget is None:
        return f"{takes}, and no other makes the same progress in less time"
    quicker = [r for r in rows if r.progress_time < best.progress_time and r.total > budget]
    others = f"of what fits {format_bytes(budget)} nothing makes the same progress in less time"
    if not quicker:
        return f"{takes}; {others}"
    missed = min(quicker, key=lambda r: r.total)
    return (
        f"{takes}; {others} (the next, {missed.name}, {missed.rows}, {missed.precision}, would "
        f"need {format_bytes(missed.total)})"
    )


def smaller(rows: Sequence[Row], measured: Measured) -> tuple[str, ...]:
    """What fewer adapter elements would do to forward mode, from the measured tangents."""
    exact = [r for r in rows if r.noise == 0 and not isinstance(r.engine, Forward)]
    single = [r for r in rows if isinstance(r.engine, Forward) and r.way.slopes(2) == 1]
    if not single or not exact or measured.elements < 2:
        return ()
    one = min(single, key=lambda r: r.time)
    rival = min(exact, key=lambda r: r.time)
    tangent = max(one.time - 1, 0.1)
    even = max(1, int((rival.time - 1) / tangent))
    sentences = [
        f"The client perturbs {measured.elements:,} elements. With 16, the exact gradient by "
        f"tangents takes about {1 + 16 * tangent:.1f} times inference, with 4 about "
        f"{1 + 4 * tangent:.1f}; the quickest exact engine here takes {rival.time:.1f}.",
        f"Forward mode is level with it at about {even} element{'s' * (even > 1)} per client "
        "(adapter.u, adapter.layers, or more clients per round); below its memory at any number.",
    ]
    return tuple(sentences)
