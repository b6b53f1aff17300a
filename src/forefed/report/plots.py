"""The plots of runs. Runs are numbered as in the page's legend; the legends themselves are HTML, so
that long names wrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forefed.core.types import Json
from forefed.report import words
from forefed.report.drawing import draw_line, drawn, label_axis, ticks, whole_rounds
from forefed.report.palette import INK, PHASE_COLOURS, PHASES, colour
from forefed.report.read import Run, finite, label_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Against = Literal["round", "bytes", "forwards"]
AXES: dict[Against, str] = {
    "round": "round",
    "bytes": "bytes sent so far, up and down",
    "forwards": "forward-equivalents so far",
}
MOST_BARS = 40  # clients drawn as bars; more become a map
MOST_COLOURS = 8  # labels told apart by colour; more become a map
SMOOTH_FROM = 40  # rounds from which a running mean is drawn over the losses


def quality_plot(runs: Sequence[Run], against: Against, wide: bool = False) -> str | None:
    """Quality on the test set over rounds or over a cost; None without anything to draw.

    A cost that spans more than two decades gets a logarithmic axis, which leaves round 0 out.
    """
    curves = [_curve(run, against, "test") for run in runs]
    positive = [x for xs, _ in curves for x in xs if x > 0]
    if not any(xs for xs, _ in curves) or (against != "round" and not positive):
        return None
    logarithmic = against != "round" and max(positive) > 100 * min(positive)
    metric = next(run.metric for run in runs if run.metric)
    with drawn(f"quality-{against}", wide) as drawing:
        ax = drawing.axes()
        if logarithmic:
            ax.set_xscale("log")
        for index, (run, curve) in enumerate(zip(runs, curves, strict=True)):
            xs, ys = _visible(curve, logarithmic)
            draw_line(ax, index, xs, ys, marks=len(xs) <= 40)
            own_xs, own_ys = _visible(_curve(run, against, "clients"), logarithmic)
            ax.plot(
                own_xs,
                own_ys,
                color=colour(index),
                lw=1.2,
                ls=(0, (1, 2)),
                marker="o",
                ms=4.5,
                mfc="none",
            )
        for value in sorted({round(run.majority, 4) for run in runs if run.majority is not None}):
            ax.axhline(value, color=INK["quiet"], lw=1, ls=(0, (5, 3)))
            ax.annotate(
                f"{metric.chance} {words.quality(metric, value)}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 4),
                fontsize=11,
                textcoords="offset points",
                ha="right",
                color=INK["quiet"],
            )
        ax.set_xlabel(AXES[against])
        ax.yaxis.set_major_locator(ticks())
        ax.set_ylabel(words.axis(metric))
        label_axis(ax.yaxis, partial(words.tick, metric))
        if against == "round":
            whole_rounds(ax)
        else:
            label_axis(ax.xaxis, words.size if against == "bytes" else words.short)
            if not logarithmic:
                ax.xaxis.set_major_locator(ticks())
                ax.set_xlim(left=0)
    return drawing.svg


def loss_plot(runs: Sequence[Run]) -> str | None:
    """The clients' mean training loss per round; long runs get a running mean on top."""
    if not any(finite(line.get("loss")) is not None for run in runs for line in run.rounds):
        return None
    with drawn("loss") as drawing:
        ax = drawing.axes()
        for index, run in enumerate(runs):
            xs = [line["round"] for line in run.rounds]
            ys = np.array([_nan(finite(line.get("loss"))) for line in run.rounds])
            if len(xs) <= SMOOTH_FROM:
                draw_line(ax, index, xs, ys, marks=len(xs) <= 12)
            else:
                ax.plot(xs, ys, color=colour(index), lw=0.8, alpha=0.35)
                draw_line(ax, index, xs, _running_mean(ys, smoothing(len(xs))), marks=False)
        ax.set_xlabel("round")
        ax.set_ylabel("training loss (nats)")
        whole_rounds(ax)
    return drawing.svg


def smoothing(rounds: int) -> int:
    """Rounds in the running mean of a loss curve; 1 is no smoothing."""
    return 1 if rounds <= SMOOTH_FROM else max(5, rounds // 20)


def seconds_plot(runs: Sequence[Run], names: Sequence[str]) -> str | None:
    """Where a round's time goes: every round of one run, or the mean round of several."""
    if not any(run.seconds for run in runs):
        return None
    with drawn("seconds", height=3.5 + 0.3 * max(0, min(len(runs), 20) - 4)) as drawing:
        ax = drawing.axes()
        if len(runs) == 1:
            rounds = [line["round"] for line in runs[0].rounds]
            edges = np.array([rounds[0] - 0.5, *(r + 0.5 for r in rounds)])
            base = np.zeros(len(rounds))
            for phase, values in phase_seconds(runs[0]).items():
                ax.stairs(
                    base + values,
                    edges,
                    baseline=base,
                    fill=True,
                    color=colour(PHASE_COLOURS[phase]),
                    linewidth=0,
                )
                base = base + values
            ax.set_xlabel("round")
            ax.set_ylabel("seconds")
            whole_rounds(ax)
        else:
            rows = np.arange(len(runs))
            left = np.zeros(len(runs))
            means = [
                {p: float(v.mean()) if len(v) else 0.0 for p, v in phase_seconds(run).items()}
                for run in runs
            ]
            for phase in PHASES:
                width = np.array([mean[phase] for mean in means])
                ax.barh(rows, width, left=left, height=0.62, color=colour(PHASE_COLOURS[phase]))
                left = left + width
            ax.set_yticks(rows, [words.cut(name) for name in names])
            ax.invert_yaxis()
            ax.grid(axis="y", visible=False)
            ax.set_xlabel("seconds of a mean round")
    return drawing.svg


def phase_seconds(run: Run) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Seconds [rounds] by phase; "other" is what the named phases leave of the total."""
    lines = [line.get("seconds") or {} for line in run.rounds]
    named = {
        phase: np.array([finite(line.get(phase)) or 0.0 for line in lines]) for phase in PHASES[:-1]
    }
    total = np.array([finite(line.get("total")) or 0.0 for line in lines])
    return {**named, "other": np.maximum(total - sum(named.values()), 0.0)}


def partition_plot(partition: Json, key: str = "partition") -> str | None:
    """Who holds what: clients by size, bars coloured by label, or a map when there are many."""
    sizes = np.array(partition.get("sizes") or [], dtype=float)
    if not len(sizes):
        return None
    names = label_names(partition)
    counts = np.array(partition.get("counts") or [], dtype=float).reshape(len(sizes), -1)
    order = np.argsort(-sizes, kind="stable")
    sizes, counts = sizes[order], counts[order]
    mapped = is_map(partition)
    height = 3.6 + (min(0.2 * len(names), 5) if mapped else 0)
    with drawn(key, wide=True, height=height) as drawing:
        if mapped:
            top, ax = drawing.stacked(1.5, max(0.2 * len(names), 1.6))
            _size_steps(top, sizes)
            # The opacity is the share, so the map stands on a light page as well as on a dark one.
            share = counts.T / np.maximum(sizes, 1)
            rgb = [int(colour(0)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            image = np.concatenate([np.broadcast_to(rgb, (*share.shape, 3)), share[..., None]], 2)
            ax.imshow(
                image, aspect="auto", interpolation="nearest", extent=(0, len(sizes), len(names), 0)
            )
            every = -(-len(names) // 40)
            ax.set_yticks(
                np.arange(0, len(names), every) + 0.5,
                [words.cut(name, 20) for name in names[::every]],
            )
            ax.grid(visible=False)
            ax.set_xlabel("clients, largest first")
            return drawing.close()
        ax = drawing.axes()
        if len(sizes) > MOST_BARS:
            _size_steps(ax, sizes)
            ax.set_xlabel("clients, largest first")
            return drawing.close()
        base = np.zeros(len(sizes))
        parts = counts.T if names else sizes[None]
        for index, part in enumerate(parts):
            ax.bar(
                np.arange(len(sizes)),
                part,
                bottom=base,
                width=0.8,
                color=colour(index),
                edgecolor=INK["page"],
                linewidth=0.6,
            )
            base += part
        ax.set_xticks(np.arange(len(sizes)), [str(i) for i in order])
        ax.margins(x=0.01)
        ax.grid(axis="x", visible=False)
        ax.set_xlabel("client number, largest client first")
        ax.set_ylabel("training examples")
    return drawing.svg


def is_map(partition: Json) -> bool:
    """Is this partition drawn as a map of label shares?"""
    labels = len(label_names(partition))
    many = len(partition.get("sizes") or []) > MOST_BARS
    return labels > 0 and (many or labels > MOST_COLOURS)


def _curve(run: Run, against: Against, split: str) -> tuple[list[float], list[float]]:
    """Points of one run: cost (or round) and quality, where both are known."""
    cost = {} if against == "round" else run.spent(against)
    xs, ys = [], []
    for line in run.evaluations:
        x = line["round"] if against == "round" else cost.get(line["round"])
        y = run.quality(line)
        if line.get("split") == split and x is not None and y is not None:
            xs.append(float(x))
            ys.append(y)
    return xs, ys


def _visible(
    curve: tuple[list[float], list[float]], logarithmic: bool
) -> tuple[list[float], list[float]]:
    kept = [(x, y) for x, y in zip(*curve, strict=True) if x > 0 or not logarithmic]
    return [x for x, _ in kept], [y for _, y in kept]


def _running_mean(ys: Any, span: int) -> Any:
    """Mean of the last ``span`` values, losses that are no number left out."""
    known = np.isfinite(ys)
    sums = np.cumsum(np.where(known, ys, 0.0))
    counts = np.cumsum(known)
    sums[span:] -= sums[:-span].copy()
    counts[span:] -= counts[:-span].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def _size_steps(ax: Axes, sizes: Any) -> None:
    ax.stairs(sizes, np.arange(len(sizes) + 1), fill=True, color=colour(0), linewidth=0)
    ax.set_ylabel("examples")
    ax.set_xlim(0, len(sizes))


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
