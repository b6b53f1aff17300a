"""What a comparison shows in pictures: quality over rounds and costs, certainty, settings."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from forefed.core.metrics import Metric
from forefed.report import pictures, plots, words
from forefed.report.comparison.cells import Comparison
from forefed.report.comparison.results import Result, ends_of, quality_text
from forefed.report.comparison.views import Robustness, robustness
from forefed.report.content import Figure, Section, Table
from forefed.report.plots import AXES, Axis, Curve
from forefed.report.read import Run, finite

MOST_MATRICES = 24
"""Matrices of confusion on a page."""


def doubted(comparison: Comparison) -> Section:
    """What each method confuses, and whether its certainty is to be believed: one run of each."""
    shown: list[Figure | None] = []
    more: list[Figure | None] = []
    for number, place in enumerate(comparison.places):
        found = {m: list(comparison.runs(place, m).values()) for m in comparison.methods}
        first = {m: runs[0] for m, runs in found.items() if runs}
        bins = {m: b for m, run in first.items() if (b := run.details.get("calibration"))}
        caption = place.label or "share that is right by stated certainty"
        shown.append(pictures.certainty(f"certainty-{number}", caption, bins))
        for method, run in first.items():
            names = [str(name) for name in run.partition.get("labels") or []]
            matrix = run.details.get("confusion")
            if matrix and len(names) == len(matrix) and len(more) < MOST_MATRICES:
                title = ", ".join(part for part in (method, place.label) if part)
                more.append(pictures.confusion(matrix, names, f"confusion-{len(more)}", title))
    return Section("Confusion and certainty", (), shown, (), more)


def curves(comparison: Comparison) -> Section:
    """Quality over rounds, bytes and compute, at every place."""
    titles = {"round": "Quality over rounds", "bytes": "Quality for its bytes",
              "forwards": "Quality for its compute"}  # fmt: skip
    found = []
    for number, place in enumerate(comparison.places):
        for against, title in titles.items():
            drawn = [mean_curve(m, list(comparison.runs(place, m).values()), against)
                     for m in comparison.methods]  # fmt: skip
            found.append(
                plots.lines(
                    f"curves-{number}-{against}",
                    title,
                    place.label or "mean and range of the seeds",
                    drawn,
                    AXES[against],
                    plots.quality_axis(comparison.metric),
                    wide=against == "round",
                )
            )
    return Section("Curves", (), found)


def mean_curve(name: str, runs: Sequence[Run], against: str) -> Curve:
    """Mean quality with the range of the seeds at every round in which all runs were tested."""
    scores = [
        {e["round"]: q for e in run.tests if (q := run.quality(e)) is not None} for run in runs
    ]
    common = sorted(set.intersection(*(set(s) for s in scores))) if scores else []
    xs = common if against == "round" else [
        fmean(run.spent("bytes" if against == "bytes" else "forwards")[at] for run in runs)
        for at in common
    ]  # fmt: skip
    ys = [[s[at] for s in scores] for at in common]
    return Curve(name, xs, [fmean(y) for y in ys], [(min(y), max(y)) for y in ys])


def robust(comparison: Comparison, results: Sequence[Result]) -> Section:
    """Quality by the values of every setting under ``over``."""
    metric, tables, figures = comparison.metric, [], []
    for number, view in enumerate(robustness(comparison, results)):
        rows = []
        for method, row in view.by_method.items():
            means = [i.mean for i in row if i]
            lost = words.difference(metric, max(means) - min(means)) if len(means) > 1 else ""
            rows.append((method, *(quality_text(metric, i) for i in row), lost or words.ABSENT))
        others = [f"{key} = {value}" for key, value in view.others]
        caption = ", ".join(part for part in (view.dataset, view.key, *others) if part)
        heads = ("method", *(str(value) for value in view.values), "best to worst")
        figures.append(_by_setting(metric, view, f"robustness-{number}", caption))
        tables.append(Table(heads, rows, caption))
    return Section("Robustness", (), figures, tables)


def _by_setting(metric: Metric, view: Robustness, key: str, caption: str) -> Figure | None:
    """Quality with its interval by the values of a setting, on a scale where they are numbers."""
    numbers = [finite(value) for value in view.values]
    known = [value for value in numbers if value is not None]
    scale = len({*known}) == len(view.values)
    xs = known if scale else [float(i) for i in range(len(view.values))]
    drawn = [
        Curve(
            method,
            [x for x, i in zip(xs, row, strict=True) if i],
            [i.mean for i in row if i],
            [ends_of(metric, i) for i in row if i],
        )
        for method, row in view.by_method.items()
    ]
    names = dict(zip(xs, map(str, view.values), strict=True))
    wide_span = scale and min(xs) > 0 and max(xs) >= 10 * min(xs)
    axis = Axis(view.key, lambda x: names.get(x, ""), at=xs, cost=wide_span)
    return plots.lines(
        key, f"Quality by {view.key}", caption, drawn, axis, plots.quality_axis(metric)
    )
