"""Pictures of one kind each: classes, certainty, numbers, clients, the partition, time, losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import words
from forefed.report.content import Figure, Table
from forefed.report.draw import INK, colour, drawn, image, levels, look, ticks
from forefed.report.plots import REST, ROUNDS, Axis, Curve, lines, percent
from forefed.report.read import Run, finite, label_names

COUNTED = 12
"""Classes up to which every cell shows its number."""
NAMED = 60
"""Names on an axis at most."""
MOST_BARS = 40
"""Clients drawn as bars; more become a map."""
SMOOTHED = 40
"""Rounds from which a running mean is drawn over the losses."""
PHASES = {"plan": 5, "clients": 0, "aggregate": 2, "guard": 6, "evaluate": 4, "checkpoint": 3}
"""Parts of a round, with the number of their colour."""


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


def certainty(
    key: str, caption: str, bins: Mapping[str, Sequence[Sequence[float]]]
) -> Figure | None:
    """The share that is right by stated certainty, one curve a series."""
    curves = [Curve(name, [s for _, s, _ in b], [r for *_, r in b]) for name, b in bins.items()]
    right = Curve("as it should be", (0.0, 1.0), (0.0, 1.0), faint=True, index=REST)
    x, y = Axis("stated certainty", percent), Axis("right", percent)
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
