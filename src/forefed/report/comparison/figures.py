"""Plots of a comparison: mean curves over seeds with their range, and quality by a setting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from forefed.report import words
from forefed.report.comparison.cells import Comparison, Place
from forefed.report.comparison.views import Robustness
from forefed.report.drawing import draw_line, drawn, label_axis, ticks, whole_rounds
from forefed.report.palette import colour
from forefed.report.plots import AXES, Against
from forefed.report.read import Run, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 100
"""Costs that span more than this ratio get a logarithmic axis."""


def curves(comparison: Comparison, place: Place, against: Against, key: str) -> str | None:
    """Mean quality over the seeds, and the range of the seeds behind it; None without curves."""
    points = [
        mean_curve(list(comparison.runs(place, m).values()), against) for m in comparison.methods
    ]
    xs = [x for curve in points for x, *_ in curve if x > 0]
    if not xs:
        return None
    logarithmic = against != "round" and max(xs) > DECADES * min(xs)
    with drawn(key, wide=against == "round") as drawing:
        ax = drawing.axes()
        if logarithmic:
            ax.set_xscale("log")
        for index, curve in enumerate(points):
            shown = [p for p in curve if p[0] > 0 or not logarithmic]
            at, means, lows, highs = ([p[i] for p in shown] for i in range(4))
            ax.fill_between(at, lows, highs, color=colour(index), alpha=0.15, linewidth=0)
            draw_line(ax, index, at, means, marks=len(at) <= 40)
        ax.set_xlabel(AXES[against])
        _quality_axis(ax, comparison)
        if against == "round":
            whole_rounds(ax)
        else:
            label_axis(ax.xaxis, words.size if against == "bytes" else words.short)
    return drawing.svg


def mean_curve(runs: Sequence[Run], against: Against) -> list[tuple[float, float, float, float]]:
    """(mean x, mean quality, lowest, highest) at every round in which all runs were tested."""
    scores = [
        {e["round"]: q for e in run.tests if (q := run.quality(e)) is not None} for run in runs
    ]
    common = sorted(set.intersection(*(set(s) for s in scores))) if scores else []
    found = []
    for at in common:
        xs = [float(at) if against == "round" else run.spent(against)[at] for run in runs]
        ys = [s[at] for s in scores]
        found.append((sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return found


def by_setting(comparison: Comparison, view: Robustness, key: str) -> str:
    """Quality with its interval by the values of a setting (on a scale where they are numbers)."""
    numbers = [finite(value) for value in view.values]
    scale = None not in numbers and len(set(numbers)) == len(numbers)
    with drawn(key) as drawing:
        ax = drawing.axes()
        xs: list[Any] = list(numbers) if scale else list(range(len(view.values)))
        if scale and min(xs) > 0 and max(xs) >= 10 * min(xs):
            ax.set_xscale("log")
        for index, row in enumerate(view.by_method.values()):
            known = [(x, i) for x, i in zip(xs, row, strict=True) if i]
            at, means = [x for x, _ in known], [i.mean for _, i in known]
            draw_line(ax, index, at, means, marks=True)
            halves = [i.half or 0.0 for _, i in known]
            ax.errorbar(at, means, halves, fmt="none", ecolor=colour(index), elinewidth=1.2)
        ax.set_xticks(xs, [str(value) for value in view.values])
        ax.minorticks_off()
        ax.set_xlabel(view.key)
        _quality_axis(ax, comparison)
    return drawing.svg


def _quality_axis(ax: Axes, comparison: Comparison) -> None:
    ax.yaxis.set_major_locator(ticks())
    ax.set_ylabel(words.axis(comparison.metric))
    label_axis(ax.yaxis, partial(words.tick, comparison.metric))
