"""Curves and bars: what they draw, in words, and their numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from forefed.core.intervals import Ends
from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import words
from forefed.report.content import Figure, Table
from forefed.report.draw import INK, colour, draw_line, drawn, labels, levels, ticks

DECADES = 100
"""Costs that span more than this ratio get a logarithmic axis."""
REST = 7
"""The colour of what is beside the point."""


@dataclass(frozen=True)
class Axis:
    """What an axis measures and how its numbers are written.

    ``cost``: from 0 on, or logarithmic where it spans much (or has ticks of its own, ``at``).
    """

    label: str
    text: Callable[[float], str] = "{:g}".format
    whole: bool = False
    cost: bool = False
    at: Sequence[float] = ()
    show: Callable[[float], str] | None = None
    """A value in words and tables; None: as on the axis."""


ROUNDS = Axis("round", whole=True)
AXES = {
    "round": ROUNDS,
    "bytes": Axis("bytes sent so far, up and down", words.size, cost=True),
    "forwards": Axis("forward-equivalents so far", words.short, cost=True),
}


@dataclass(frozen=True)
class Curve:
    """Points of one series; ``ends``: their intervals. ``faint``: thin, behind the others."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    ends: Sequence[Ends | None] = ()
    faint: bool = False
    index: int | None = None

    @staticmethod
    def of(name: str, lines: Sequence[Json], value: Callable[[Json], float | None]) -> Curve:
        """Of record lines, by round, where they have the value."""
        known = [(line["round"], v) for line in lines if (v := value(line)) is not None]
        return Curve(name, [x for x, _ in known], [y for _, y in known])


def percent(share: float) -> str:
    """On an axis of shares."""
    return f"{100 * share:.0f} %"


def quality_axis(metric: Metric) -> Axis:
    show = partial(words.quality, metric, unit=False)
    return Axis(words.axis(metric), partial(words.tick, metric), show=show)


def lines(
    key: str,
    title: str,
    caption: str,
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    named: Sequence[tuple[str, float]] = (),
    wide: bool = False,
) -> Figure | None:
    """Curves over a common axis; None without a point. On a logarithmic axis 0 has no place.

    Args:
        named: levels across, with their names.
    """
    at = [v for curve in curves for v in curve.xs]
    positive = [v for v in at if v > 0]
    if not at or (x.cost and not positive):
        return None
    logarithmic = x.cost and (bool(x.at) or max(positive) > DECADES * min(positive))
    with drawn(key, wide) as drawing:
        ax = drawing.axes()
        if logarithmic:
            ax.set_xscale("log")
        for number, curve in enumerate(curves):
            kept = [j for j, v in enumerate(curve.xs) if v > 0 or not logarithmic]
            xs, ys = [curve.xs[j] for j in kept], [curve.ys[j] for j in kept]
            index = number if curve.index is None else curve.index
            if curve.faint:
                ax.plot(xs, ys, color=colour(index), lw=0.8, alpha=0.35)
                continue
            if curve.ends:
                low, high = zip(*(curve.ends[j] or (curve.ys[j],) * 2 for j in kept), strict=True)
                ax.fill_between(xs, low, high, color=colour(index), alpha=0.15, lw=0)
                if len(curves) == 1 or x.at or len(xs) == 1:
                    ax.vlines(xs, low, high, color=colour(index), lw=1.2)
            draw_line(ax, index, xs, ys)
        levels(ax, named)
        ax.set_xlabel(x.label)
        ax.set_ylabel(y.label)
        ticks(ax.yaxis, y.text)
        if x.at:
            ax.set_xticks(x.at, [x.text(value) for value in x.at])
            ax.minorticks_off()
        elif logarithmic:
            labels(ax.xaxis, x.text)
        else:
            ticks(ax.xaxis, x.text, x.whole)
        if x.cost and not logarithmic:
            ax.set_xlim(left=0)
    show, told = y.show or y.text, [c for c in curves if len(c.xs) and not c.faint]
    ends = [f"{c.name}: {show(c.ys[0])} to {show(c.ys[-1])}" for c in told]
    ends += [f"{name} {show(value)}" for name, value in named]
    named_by = {c.name: i if c.index is None else c.index for i, c in enumerate(curves)}
    several = [(i, name) for name, i in named_by.items()] if len(curves) > 1 else []
    alt, table = f"{caption}. {'; '.join(ends)}", None if x.cost else _points(told, x, show)
    return Figure(title, caption, drawing.svg, alt, wide, table, several, lines=True)


def _points(curves: Sequence[Curve], x: Axis, show: Callable[[float], str]) -> Table:
    at = sorted({v for curve in curves for v in curve.xs})
    known = [dict(zip(c.xs, c.ys, strict=True)) for c in curves]
    rows = [(x.text(v), *(show(k[v]) if v in k else words.ABSENT for k in known)) for v in at]
    return Table((x.label, *(c.name for c in curves)), rows, folded="These numbers as a table")


def bars(
    key: str,
    title: str,
    caption: str,
    rows: Sequence[tuple[str, float | None, Ends | None]],
    text: Callable[[float], str],
    marks: Sequence[float | None] = (),
    named: str = "",
    own: int | None = None,
    wide: bool = False,
) -> Figure | None:
    """A bar per row with its interval; ``marks``: a second value of each row, called ``named``;
    ``own``: rows of interest, before what they are compared with."""
    if not rows:
        return None
    with drawn(key, wide, height=1.1 + 0.34 * len(rows)) as drawing:
        ax = drawing.axes()
        places, own = np.arange(len(rows)), len(rows) if own is None else own
        inks = [colour(0)] * own + [INK["quiet"]] * (len(rows) - own)
        ax.barh(places, [value or 0.0 for _, value, _ in rows], color=inks, height=0.62)
        for place, (_, value, ends) in enumerate(rows):
            if ends:
                ax.hlines(place, *ends, color=INK["ink"], lw=1.6)
            at = max([value or 0.0, 0.0, *(ends or ())])
            shown = words.ABSENT if value is None else text(value)
            ax.annotate(shown, (at, place), (6, 0), textcoords="offset points", va="center")
        for place, mark in enumerate(marks):
            if mark is not None:
                ax.vlines(mark, place - 0.4, place + 0.4, color=colour(1), lw=2.4)
        ax.set_yticks(places, [words.cut(name, 70 if wide else 34) for name, *_ in rows])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.16)
        ticks(ax.xaxis, text, most=5)
    cells = [
        (name, words.ABSENT if v is None else text(v), *(words.ABSENT if m is None else text(m)
         for m in marks[i : i + 1]))
        for i, (name, v, _) in enumerate(rows)
    ]  # fmt: skip
    heads = ("", "value", *([named] if marks else []))
    table = Table(heads, cells, folded="These numbers as a table")
    said = "; ".join(f"{name} {value}" for name, value, *_ in cells[:8])
    return Figure(title, caption, drawing.svg, f"{caption}. {said}", wide, table)
