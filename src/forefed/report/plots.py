"""The pictures: what they draw, in words, and their numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from forefed.core.intervals import Ends
from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import words
from forefed.report.content import Figure, Table
from forefed.report.draw import INK, colour, draw_line, drawn, image, labels, levels, look, ticks
from forefed.report.read import Run, finite, label_names

COUNTED = 12
"""Classes up to which every cell shows its number."""
NAMED = 60
"""Names on an axis at most."""
MOST_BARS = 40
"""Clients drawn as bars; more become a map."""
DECADES = 100
"""Costs that span more than this ratio get a logarithmic axis."""
SMOOTHED = 40
"""Rounds from which a running mean is drawn over the losses."""
PHASES = {"plan": 5, "clients": 0, "aggregate": 2, "guard": 6, "evaluate": 4, "checkpoint": 3}
"""Parts of a round, with the number of their colour."""
REST = 7


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
    several = enumerate(dict.fromkeys(c.name for c in curves)) if len(curves) > 1 else ()
    alt, table = f"{caption}. {'; '.join(ends)}", None if x.cost else _points(told, x, show)
    return Figure(title, caption, drawing.svg, alt, wide, table, tuple(several), lines=True)


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


def confusion(
    counts: Sequence[Sequence[int]],
    names: Sequence[str],
    key: str = "confusion",
    title: str = "What is taken for what",
) -> Figure:
    """Every true class a row: where its test texts go."""
    n, count = len(names), np.array(counts, dtype=float)
    share = count / np.maximum(count.sum(1, keepdims=True), 1)
    with drawn(key, wide=n > COUNTED, height=2.2 + min(0.36 * n, 11.0)) as drawing:
        ax = drawing.axes()
        image(ax, share)
        for (true, said), number in np.ndenumerate(count) if n <= COUNTED else ():
            ink = INK["page" if share[true, said] > 0.55 else "ink"]
            text = f"{int(number):,}" if number else ""
            ax.text(said, true, text, ha="center", va="center", fontsize=11, color=ink)
        every = -(-n // NAMED)
        shown = [words.cut(name, 18) for name in names[::every]]
        small = 11.5 if n <= 25 else 9.5
        ax.set_yticks(range(0, n, every), shown, fontsize=small)
        rotation = 45 if n <= 8 else 90
        ax.set_xticks(
            range(0, n, every), shown, rotation=rotation, ha="right", fontsize=small,
            rotation_mode="anchor", va="center" if rotation == 90 else "top",
        )  # fmt: skip
        ax.set_xlabel("what the model says")
        ax.set_ylabel("the true class")
        for at in np.arange(n - 1) + 0.5 if n > COUNTED else ():  # guides for the eye
            ax.axhline(at, color=INK["grid"], lw=0.4)
            ax.axvline(at, color=INK["grid"], lw=0.4)
    right = [f"{words.cut(x)} {words.percent(share[i, i])}" for i, x in enumerate(names[:8])]
    caption = "rows: the true class; columns: what the model says; stronger: more of its row"
    alt = f"{caption}. Found of each class: {', '.join(right)}{' ...' if n > 8 else ''}"
    return Figure(title, caption, drawing.svg, alt, n > COUNTED)


def calibration(bins: Sequence[Sequence[float]]) -> tuple[Figure, Table]:
    """The share that is right by stated certainty, above how often each is stated; its numbers."""
    count, sure, right = np.array(bins, dtype=float).T
    with drawn("calibration", height=4.4) as drawing:
        ax, below = drawing.stacked(3.2, 1.0)
        ax.plot([0, 1], [0, 1], color=INK["quiet"], lw=1, ls=(0, (5, 3)))
        draw_line(ax, 0, list(sure), right)
        ax.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="right")
        ticks(ax.yaxis, _percent)
        below.bar(sure, count, width=0.05, color=INK["quiet"])
        below.set(xlabel="stated certainty", ylabel="cases")
        ticks(below.yaxis, "{:g}".format, whole=True, most=3)
        ticks(below.xaxis, _percent)
    caption = "share that is right by stated certainty; dashed: as it should be; bars: how many"
    rows = [(_percent(s), _percent(r), f"{n:,.0f}") for n, s, r in bins]
    said = "; ".join(f"{s} sure, {r} right" for s, r, _ in rows)
    table = Table(("certainty", "right", "cases"), rows)
    alt = f"{caption}. {said}"
    return Figure("Stated and true certainty", caption, drawing.svg, alt), table


def certainty(
    key: str, caption: str, bins: Mapping[str, Sequence[Sequence[float]]]
) -> Figure | None:
    """The share that is right by stated certainty, one curve a series."""
    curves = [Curve(name, [s for _, s, _ in b], [r for *_, r in b]) for name, b in bins.items()]
    right = Curve("as it should be", (0.0, 1.0), (0.0, 1.0), faint=True, index=REST)
    x, y = Axis("stated certainty", _percent), Axis("right", _percent)
    title = "Stated and true certainty"
    return lines(key, title, caption, [*curves, right], x, y) if curves else None


def scatter(pairs: Sequence[Sequence[float]]) -> Figure:
    """Said against true numbers."""
    true, said = np.array(pairs, dtype=float).T
    with drawn("scatter", height=4.4) as drawing:
        ax = drawing.axes()
        ends = [min(true.min(), said.min()), max(true.max(), said.max())]
        ax.plot(ends, ends, color=INK["quiet"], lw=1, ls=(0, (5, 3)))
        ax.plot(true, said, "o", ms=4, alpha=0.5, color=colour(0), markeredgewidth=0)
        ax.set(xlabel="true", ylabel="said")
    caption = "test texts by their true number; on the dashed line the model is right"
    rows = [(f"{a:.4g}", f"{b:.4g}") for a, b in pairs]
    table = Table(("true", "said"), rows, folded="These numbers as a table")
    return Figure("Said and true", caption, drawing.svg, table=table)


def clients(
    metric: Metric, values: Mapping[str, Sequence[float]], named: Sequence[tuple[str, float]]
) -> Figure | None:
    """Every client's quality, the worst first, by which model it was tested with; ``named``: the
    mean and the like."""
    if not any(values.values()):
        return None
    with drawn("clients", wide=True) as drawing:
        ax = drawing.axes()
        for index, found in enumerate(values.values()):
            ranked = sorted(found, reverse=not metric.higher_is_better)
            at = np.arange(1, len(ranked) + 1)
            ax.plot(at, ranked, look(index)[1], ms=6, color=colour(index), markeredgewidth=0)
        levels(ax, named)
        ax.set(xlabel="clients, the worst served first", ylabel=words.axis(metric))
        ticks(ax.yaxis, partial(words.tick, metric))
        ticks(ax.xaxis, "{:g}".format, whole=True)
    said = "; ".join(f"{name} {words.quality(metric, value)}" for name, value in named)
    legend = list(enumerate(values)) if len(values) > 1 else ()
    caption = f"{metric.title} of each on its own test texts"
    return Figure("Every client", caption, drawing.svg, f"{caption}. {said}", True, legend=legend)


def partition(held: Json, key: str = "partition") -> Figure | None:
    """Who holds what: clients by size, bars coloured by label, or a map when there are many."""
    sizes = np.array(held.get("sizes") or [], dtype=float)
    if not len(sizes):
        return None
    names = label_names(held)
    counts = np.array(held.get("counts") or [], dtype=float).reshape(len(sizes), -1)
    order = np.argsort(-sizes, kind="stable")
    sizes, counts = sizes[order], counts[order]
    mapped, n = is_map(held), len(sizes)
    legend: list[tuple[int | None, str]] = list(enumerate(names))
    with drawn(key, True, 3.6 + (min(0.2 * len(names), 5) if mapped else 0)) as drawing:
        above, ax = drawing.stacked(1.5, max(0.2 * len(names), 1.6)) if mapped else (None,) * 2
        above = above or drawing.axes()
        if n > MOST_BARS or mapped:
            above.stairs(sizes, np.arange(n + 1), fill=True, color=colour(0), linewidth=0)
            above.set(xlim=(0, n), ylabel="examples")
        else:
            base = np.zeros(n)
            for index, part in enumerate(counts.T if names else sizes[None]):
                above.bar(np.arange(n), part, bottom=base, color=colour(index),
                          edgecolor=INK["page"], linewidth=0.6)  # fmt: skip
                base += part
            above.set_xticks(np.arange(n), [str(i) for i in order])
            above.margins(x=0.01)
            above.grid(axis="x", visible=False)
            above.set_ylabel("training examples")
        if ax is not None:
            image(ax, counts.T / np.maximum(sizes, 1), extent=(0, n, len(names), 0))
            every = -(-len(names) // NAMED)
            shown = [words.cut(name, 20) for name in names[::every]]
            ax.set_yticks(np.arange(0, len(names), every) + 0.5, shown, fontsize=9.5)
            legend = [(None, "stronger: more of the client's examples have this label")]
        (ax or above).set_xlabel("clients, largest first")
    caption = "clients by size, and the labels they hold" if names else "clients by size"
    alt = f"{caption}: {n:,} clients of {sizes[-1]:,.0f} to {sizes[0]:,.0f} examples"
    return Figure("The partition", caption, drawing.svg, alt, True, legend=legend)


def is_map(held: Json) -> bool:
    """Is this partition drawn as a map of label shares?"""
    many = len(held.get("sizes") or []) > MOST_BARS
    return bool(label_names(held)) and (many or len(label_names(held)) > len(PHASES) + 2)


def seconds(runs: Sequence[Run], names: Sequence[str]) -> Figure | None:
    """Where a round's time goes: every round of one run, or the mean round of several."""
    if not any(run.seconds for run in runs):
        return None
    spent = [phase_seconds(run) for run in runs]
    height = 3.5 + 0.3 * max(0, min(len(runs), 20) - 4)
    shown = [
        (p, c) for p, c in [*PHASES.items(), ("other", REST)] if any(s[p].sum() for s in spent)
    ]
    with drawn("seconds", height=height) as drawing:
        ax = drawing.axes()
        rounds = [line["round"] for line in runs[0].rounds]
        base: Any = np.zeros(len(runs) if len(runs) > 1 else len(rounds))
        for phase, index in shown:
            style: Any = {"color": colour(index), "linewidth": 0}
            if len(runs) == 1:
                edges = [rounds[0] - 0.5, *(r + 0.5 for r in rounds)]
                top = base + spent[0][phase]
                ax.stairs(top, edges, baseline=base, fill=True, **style)
            else:
                wide = np.array([s[phase].mean() if len(s[phase]) else 0.0 for s in spent])
                ax.barh(np.arange(len(runs)), wide, left=base, height=0.62, **style)
                top = base + wide
            base = top
        if len(runs) == 1:
            ax.set(xlabel="round", ylabel="seconds")
            ticks(ax.xaxis, "{:g}".format, whole=True)
        else:
            ax.set_yticks(np.arange(len(runs)), [words.cut(name) for name in names])
            ax.invert_yaxis()
            ax.grid(axis="y", visible=False)
            ax.set_xlabel("seconds of a mean round")
    means = [{p: float(s[p].mean()) if len(s[p]) else None for p in s} for s in spent]
    cells = [(p, *(words.duration(each[p]) for each in means)) for p, _ in shown]
    table = Table(("mean round", *names), cells, folded="These numbers as a table")
    caption = "all its phases" if len(runs) == 1 else "mean over the rounds of each run"
    legend = [(index, phase) for phase, index in shown]
    return Figure("Where a round's time goes", caption, drawing.svg, table=table, legend=legend)


def phase_seconds(run: Run) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Seconds [rounds] by phase; "other" is what the named phases leave of the total."""
    spent = [line.get("seconds") or {} for line in run.rounds]
    named = {p: np.array([finite(line.get(p)) or 0.0 for line in spent]) for p in PHASES}
    total = np.array([finite(line.get("total")) or 0.0 for line in spent])
    return {**named, "other": np.maximum(total - sum(named.values()), 0.0)}


def losses(runs: Sequence[Run], names: Sequence[str]) -> Figure | None:
    """The clients' mean training loss per round; long runs get a running mean on top."""
    curves = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        known = [(line["round"], finite(line.get("loss"))) for line in run.rounds]
        xs = [r for r, _ in known]
        ys = [math.nan if y is None else y for _, y in known]
        if not np.isfinite(ys).any():
            continue
        span = smoothing(len(xs))
        if span > 1:
            curves.append(Curve(name, xs, ys, faint=True, index=index))
            padded = np.concatenate([np.full(span - 1, math.nan), ys])
            windows = np.ma.masked_invalid(np.lib.stride_tricks.sliding_window_view(padded, span))
            ys = windows.mean(1).filled(math.nan).tolist()
        curves.append(Curve(name, xs, ys, index=index))
    span = smoothing(max((run.done for run in runs), default=0))
    caption = "mean loss of the clients of a round"
    caption += f"; thick: mean of the last {span} rounds" if span > 1 else ""
    y = Axis("training loss (nats)", "{:.3g}".format)
    return lines("loss", "Training loss", caption, curves, ROUNDS, y)


def smoothing(rounds: int) -> int:
    """Rounds in the running mean of a loss curve; 1 is no smoothing."""
    return 1 if rounds <= SMOOTHED else max(5, rounds // 20)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
