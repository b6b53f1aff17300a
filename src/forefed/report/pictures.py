"""The pictures of one evaluation: against baselines, by class, by certainty, over clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from forefed.core.intervals import Ends
from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import words
from forefed.report.drawing import draw_line, drawn, label_axis, ticks, whole_rounds
from forefed.report.palette import INK, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTED = 12
"""Classes up to which every cell shows its number."""
NAMED = 40
"""Names on an axis at most."""


def baselines_plot(
    metric: Metric, rows: Sequence[tuple[str, float]], ends: Ends | None
) -> str | None:
    """The model's quality above that of what costs less; ``ends``: its interval."""
    if len(rows) < 2:
        return None
    with drawn("baselines", height=1.1 + 0.42 * len(rows)) as drawing:
        ax = drawing.axes()
        places = np.arange(len(rows))
        colours = [colour(0), *[INK["quiet"]] * (len(rows) - 1)]
        ax.barh(places, [value for _, value in rows], color=colours, height=0.62)
        if ends:
            low, high = ends
            ax.plot([low, high], [0, 0], color=INK["ink"], lw=1.6, solid_capstyle="butt")
        for place, (_, value) in enumerate(rows):
            at = max(value, ends[1]) if ends and not place else value
            shown = words.quality(metric, value, unit=False)
            ax.annotate(shown, (max(at, 0), place), (6, 0), textcoords="offset points", va="center")
        ax.set_yticks(places, [words.cut(name, 28) for name, _ in rows])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.16)
        ax.set_xlim(left=min(0.0, *(value for _, value in rows)))
        label_axis(ax.xaxis, partial(words.tick, metric))
        ax.xaxis.set_major_locator(ticks())
    return drawing.svg


def confusion_plot(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Every true class a row: where its test texts go."""
    counts = np.array(confusion, dtype=float)
    n = len(names)
    side = min(2.4 + 0.36 * n, 11.0)
    with drawn("confusion", wide=n > COUNTED, height=side) as drawing:
        ax = drawing.axes()
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(_opaque(share), aspect="auto", interpolation="nearest")
        if n <= COUNTED:
            for (true, said), count in np.ndenumerate(counts):
                if count:
                    dark = share[true, said] > 0.55
                    ax.text(
                        said,
                        true,
                        f"{int(count):,}",
                        ha="center",
                        va="center",
                        fontsize=11,
                        color=INK["page"] if dark else INK["ink"],
                    )
        _name_both(ax, names)
        ax.set_xlabel("said")
        ax.set_ylabel("true")
    return drawing.svg


def recall_plot(classes: Sequence[Json], names: Sequence[str]) -> str:
    """The share of each label's texts that are found."""
    shown = sorted(zip(names, classes, strict=True), key=lambda item: -item[1]["examples"])[:NAMED]
    with drawn("recall", height=1.2 + 0.3 * len(shown)) as drawing:
        ax = drawing.axes()
        places = np.arange(len(shown))
        ax.barh(places, [c["recall"] or 0.0 for _, c in shown], color=colour(0), height=0.62)
        ax.set_yticks(places, [words.cut(name, 24) for name, _ in shown])
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.grid(axis="y", visible=False)
        label_axis(ax.xaxis, lambda x: f"{100 * x:.0f} %")
    return drawing.svg


def calibration_plot(bins: Sequence[Sequence[float]]) -> str:
    """The share that is right by stated certainty, above how often each is stated."""
    count, sure, right = np.array(bins, dtype=float).T
    with drawn("calibration", height=4.4) as drawing:
        ax, below = drawing.stacked(3.2, 1.0)
        ax.plot([0, 1], [0, 1], color=INK["quiet"], lw=1, ls=(0, (5, 3)))
        draw_line(ax, 0, sure, right, marks=True)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        ax.set_ylabel("right")
        label_axis(ax.yaxis, lambda y: f"{100 * y:.0f} %")
        below.bar(sure, count, width=0.05, color=INK["quiet"])
        below.set_xlabel("stated certainty")
        below.set_ylabel("cases")
        below.yaxis.set_major_locator(ticks(integer=True, most=3))
        label_axis(below.xaxis, lambda x: f"{100 * x:.0f} %")
    return drawing.svg


def scatter_plot(pairs: Sequence[Sequence[float]]) -> str:
    """Said against true numbers."""
    true, said = np.array(pairs, dtype=float).T
    with drawn("scatter", height=4.4) as drawing:
        ax = drawing.axes()
        ends = [min(true.min(), said.min()), max(true.max(), said.max())]
        ax.plot(ends, ends, color=INK["quiet"], lw=1, ls=(0, (5, 3)))
        ax.plot(true, said, "o", ms=4, alpha=0.5, color=colour(0), markeredgewidth=0)
        ax.set_xlabel("true")
        ax.set_ylabel("said")
    return drawing.svg


def spread_plot(metric: Metric, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Mean, lowest tenth and worst of the clients over the rounds."""
    with drawn("spread") as drawing:
        ax = drawing.axes()
        for index, (name, points) in enumerate(curves.items()):
            if points:
                xs, ys = [x for x, _ in points], [y for _, y in points]
                draw_line(ax, index, xs, ys, marks=len(xs) <= 40)
                ax.annotate(
                    name,
                    (xs[-1], ys[-1]),
                    (-4, 6),
                    textcoords="offset points",
                    ha="right",
                    fontsize=11,
                    color=colour(index),
                )
        ax.set_xlabel("round")
        ax.set_ylabel(words.axis(metric))
        ax.yaxis.set_major_locator(ticks())
        label_axis(ax.yaxis, partial(words.tick, metric))
        whole_rounds(ax)
    return drawing.svg


def _opaque(share: Any) -> Any:
    """An image whose opacity is the share: it stands on a light page as well as on a dark one."""
    rgb = [int(colour(0)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.concatenate([np.broadcast_to(rgb, (*share.shape, 3)), share[..., None]], 2)


def _name_both(ax: Axes, names: Sequence[str]) -> None:
    every = -(-len(names) // NAMED)
    places = np.arange(0, len(names), every)
    shown = [words.cut(name, 18) for name in names[::every]]
    ax.set_yticks(places, shown)
    ax.set_xticks(places, shown, rotation=45 if len(names) <= 8 else 90, ha="right")
    for label in ax.get_xticklabels():
        label.set_rotation_mode("anchor")
    ax.grid(visible=False)
