"""What a comparison says, section by section, and where it is written: ``results.json``,
``results.md`` and ``results.html`` beside ``study.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from forefed.core.files import write_atomic, write_json
from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import facts, plots, words
from forefed.report.comparison.cells import Comparison, Place, read_comparison
from forefed.report.comparison.loses import losses, pairing, settings_rows
from forefed.report.comparison.results import (
    COSTS,
    Interval,
    Result,
    difference_text,
    interval,
    quality_text,
    results_of,
)
from forefed.report.comparison.views import (
    Robustness,
    budget_table,
    cost_to,
    near,
    robustness,
    target_of,
    under_budgets,
)
from forefed.report.content import Figure, Section, Table
from forefed.report.pages import render
from forefed.report.plots import AXES, Axis, Curve
from forefed.report.read import Run, finite
from forefed.report.sections import SPREAD, epsilon_of

MOST_MATRICES = 24
"""Matrices of confusion on a page."""


def overview(comparison: Comparison, results: Sequence[Result]) -> Section:
    """Methods against places, where there are several: quality, compute and bytes at a glance."""
    if len(comparison.places) < 2:
        return Section("Overview")
    by = {(r.place, r.method): r for r in results}

    def table(caption: str, text: Callable[[Result], str]) -> Table:
        rows = [(p.label, *(text(by[p, m]) for m in comparison.methods)) for p in comparison.places]
        return Table(("", *comparison.methods), rows, caption)

    def in_all(*keys: str) -> Callable[[Result], float | None]:
        return lambda r: sum(r.costs[k] for k in keys) if keys[0] in r.costs else None

    passes, traffic = in_all("forwards"), in_all("bytes_up", "bytes_down")
    quality = f"final {comparison.metric.title}"
    tables = (
        table(quality, lambda r: quality_text(comparison.metric, r.quality)),
        table("forward-equivalents", lambda r: words.short(passes(r))),
        table("bytes both ways", lambda r: words.size(traffic(r))),
    )
    return Section("Overview", tables=tables)


def main(comparison: Comparison, results: Sequence[Result]) -> Section:
    """Final quality and costs, one table and one picture per place."""
    metric, unit = comparison.metric, words.unit(comparison.metric).strip()
    heads = (
        "method",
        f"final {metric.title}",
        f"difference to {comparison.reference}" + (f" ({unit})" if unit else ""),
        "seeds",
        "rounds",
        *(cost.title for cost in COSTS),
    )
    tables, figures = [], []
    for number, place in enumerate(comparison.places):
        here = [r for r in results if r.place == place]
        rows = [
            (
                r.method,
                quality_text(metric, r.quality),
                difference_text(metric, r.difference),
                seeds_text(r),
                f"{r.rounds}",
                *(cost.text(r.costs.get(cost.key)) for cost in COSTS),
            )
            for r in here
        ]
        cheaper = _baselines(comparison, place)
        said = ", ".join(f"{n} {quality_text(metric, Interval(x))}" for n, x in cheaper.items())
        tables.append(Table(heads, rows, "; ".join(text for text in (place.label, said) if text)))
        bars = [(r.method, r.quality) for r in here]
        bars += [(name, Interval(value)) for name, value in cheaper.items()]
        figures.append(
            plots.bars(
                f"final-{number}",
                f"Final {metric.title}",
                place.label or "means over seeds with 95 % intervals, beside what costs less",
                [(n, i.mean if i else None, _ends(metric, i)) for n, i in bars],
                partial(words.tick, metric),
                own=len(here),
            )
        )
    return Section("Results", (), figures, tables)


def _ends(metric: Metric, found: Interval | None) -> tuple[float, float] | None:
    """The interval as drawn: a share lies between 0 and 1."""
    if found is None or found.half is None:
        return None
    low, high = found.mean - found.half, found.mean + found.half
    return (max(low, 0.0), min(high, 1.0)) if metric.scale == "share" else (low, high)


def seeds_text(result: Result) -> str:
    """As in "2 (1 failed)"; a seed that has not run is no failure."""
    without = [(result.failed, "failed"), (result.waiting, "not run")]
    said = ", ".join(f"{count} {what}" for count, what in without if count)
    return f"{len(result.qualities)}" + (f" ({said})" if said else "")


def _baselines(comparison: Comparison, place: Place) -> dict[str, float]:
    """What costs less, with its mean quality over all runs there."""
    runs = [run for m in comparison.methods for run in comparison.runs(place, m).values()]
    names = dict.fromkeys(name for run in runs for name in run.baselines)
    return {n: fmean(r.baselines[n] for r in runs if n in r.baselines) for n in names}


def beside(comparison: Comparison) -> Section:
    """The other metrics, how clients are served, and the privacy that was spent."""
    metric = comparison.metric
    runs = [run for p in comparison.places for m in comparison.methods
            for run in comparison.runs(p, m).values()]  # fmt: skip
    measures = next((run.measures for run in runs if run.measures), None)
    columns: list[tuple[str, Metric, Callable[[Run], object]]] = [
        (m.title, m, lambda run, m=m: m.of(run.final))  # type: ignore[misc]
        for m in (measures.metrics[1:] if measures else ())
    ]
    columns += [
        (f"clients: {name}", metric, lambda run, key=key: (run.last("clients") or {}).get(key))  # type: ignore[misc]
        for name, key in SPREAD.items()
    ]
    epsilon = Metric("epsilon", "epsilon", "number")
    columns.append(("epsilon", epsilon, lambda run: epsilon_of(run.summary)))
    tables = []
    for place in comparison.places:
        means = [
            [_mean(comparison.runs(place, m).values(), of) for _, _, of in columns]
            for m in comparison.methods
        ]
        kept = [i for i in range(len(columns)) if any(row[i] for row in means)]
        rows = [
            (method, *(quality_text(columns[i][1], row[i]) for i in kept))
            for method, row in zip(comparison.methods, means, strict=True)
        ]
        heads = ("method", *(columns[i][0] for i in kept))
        tables += [Table(heads, rows, place.label)] if kept else []
    return Section("Other metrics, clients and privacy", tables=tables)


def _mean(runs: Iterable[Run], of: Callable[[Run], object]) -> Interval | None:
    return interval([value for run in runs if (value := finite(of(run))) is not None])


def doubted(comparison: Comparison) -> Section:
    """What each method confuses, and whether its certainty is to be believed: one run of each."""
    shown: list[Figure | None] = []
    more: list[Figure | None] = []
    for number, place in enumerate(comparison.places):
        found = {m: list(comparison.runs(place, m).values()) for m in comparison.methods}
        first = {m: runs[0] for m, runs in found.items() if runs}
        bins = {m: b for m, run in first.items() if (b := run.details.get("calibration"))}
        caption = place.label or "share that is right by stated certainty"
        shown.append(plots.certainty(f"certainty-{number}", caption, bins))
        for method, run in first.items():
            names = [str(name) for name in run.partition.get("labels") or []]
            matrix = run.details.get("confusion")
            if matrix and len(names) == len(matrix) and len(more) < MOST_MATRICES:
                title = ", ".join(part for part in (method, place.label) if part)
                more.append(plots.confusion(matrix, names, f"confusion-{len(more)}", title))
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


def failed(comparison: Comparison) -> Section:
    """Cells without a result, with the reason."""
    rows = [(c.name, c.error or "not finished") for c in comparison.cells if c.run is None]
    tables = [Table(("cell", "reason"), rows)] if rows else []
    return Section("Cells without a result", tables=tables)


def tuning(comparison: Comparison) -> Section:
    """What was tuned, within which budget."""
    rows = [
        (
            " on ".join(part for part in (c["method"], c["dataset"]) if part),
            f"{c['runs']} runs of {words.plural(c['rounds'], 'round')}",
            ", ".join(f"{key} = {value}" for key, value in c["best"].items()),
            ", ".join(c["edges"]) or "no",
            "; ".join(_tried(comparison, t) for t in c["tried"]),
        )
        for c in comparison.study["tuning"]
    ]
    if not rows:
        return Section("Tuning")
    heads = ("method", "budget", "chosen", "on the edge", "tried")
    return Section("Tuning", tables=[Table(heads, rows)])


def _tried(comparison: Comparison, tried: Json) -> str:
    settings = ", ".join(str(value) for value in tried["settings"].values())
    if "loss" not in tried:
        return f"{settings}: {words.quality(comparison.metric, tried['quality'], unit=False)}"
    return f"{settings}: " + ("no number" if tried["loss"] is None else f"loss {tried['loss']:.4f}")


def loses(comparison: Comparison, results: Sequence[Result]) -> Section:
    """The worst view of every method."""
    table = Table(("method", "worst"), losses(comparison, results))
    return Section("Where each method loses", tables=[table])


def budgets(comparison: Comparison, results: Sequence[Result]) -> Section:
    """Quality under budgets of memory, bytes and compute."""
    tables = [
        budget_table(comparison, found, place.label)
        for place in comparison.places
        if (found := under_budgets(comparison, place, results))
    ]
    return Section("Quality under a budget", tables=tables)


def targets(comparison: Comparison, results: Sequence[Result]) -> Section:
    """What it takes to reach a quality, the same for all and each method's own."""
    kinds = ("rounds", "bytes both ways", "forward-equivalents")
    heads = ("method", *(f"{kind} to the target" for kind in kinds))
    heads += tuple(f"{kind} to 95 % of its own" for kind in kinds)
    tables = []
    for place in comparison.places:
        target = target_of(comparison, results, place)
        if target is None:
            continue
        rows = []
        for method in comparison.methods:
            runs = list(comparison.runs(place, method).values())
            finals = [(run, q) for run in runs if (q := run.quality(run.final)) is not None]
            own = [near(comparison, quality) for _, quality in finals]
            common = cost_to(comparison, runs, [target] * len(runs))
            alone = cost_to(comparison, [run for run, _ in finals], own)
            rows.append((method, *common.texts(), *alone.texts()))
        shown = f"target {quality_text(comparison.metric, Interval(target))}"
        caption = ", ".join(part for part in (place.label, shown) if part)
        tables.append(Table(heads, rows, caption))
    return Section("Cost to a target", tables=tables)


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
            [_ends(metric, i) for i in row if i],
        )
        for method, row in view.by_method.items()
    ]
    names = dict(zip(xs, map(str, view.values), strict=True))
    wide_span = scale and min(xs) > 0 and max(xs) >= 10 * min(xs)
    axis = Axis(view.key, lambda x: names.get(x, ""), at=xs, cost=wide_span)
    return plots.lines(
        key, f"Quality by {view.key}", caption, drawn, axis, plots.quality_axis(metric)
    )


def protocol(comparison: Comparison) -> Section:
    """What was held equal, and what differs between the methods."""
    tables = facts.folded(settings_rows(comparison), comparison.methods, "settings")
    seeds = ", ".join(map(str, comparison.study["seeds"]))
    said = [f"Seeds: {seeds}.", pairing(comparison)]
    if len(comparison.places) > 1:
        said.append(f"Settings are those of {comparison.places[0].label}.")
    return Section("Protocol", [text for text in said if text], tables=tables)


def sections_of(comparison: Comparison) -> tuple[list[Result], list[Section]]:
    """All of them, in the order in which they are read."""
    results = results_of(comparison)
    sections = [
        overview(comparison, results),
        main(comparison, results),
        failed(comparison),
        loses(comparison, results),
        beside(comparison),
        curves(comparison),
        doubted(comparison),
        budgets(comparison, results),
        targets(comparison, results),
        robust(comparison, results),
        tuning(comparison),
        protocol(comparison),
    ]
    return results, [section for section in sections if not section.empty]


def write_results(folder: Path) -> None:
    """The results of the comparison in ``folder``; raises like ``read_comparison``."""
    comparison = read_comparison(folder)
    results, sections = sections_of(comparison)
    write_json(
        folder / "results.json",
        {
            "study": comparison.study["name"],
            "metric": comparison.metric.key,
            "reference": comparison.reference,
            "results": [result.to_json() for result in results],
            "tuning": comparison.study["tuning"],
        },
    )
    cells = words.plural(len(comparison.cells), "cell")
    seeds = words.plural(len(comparison.study["seeds"]), "seed")
    context = {
        "title": f"Comparison: {comparison.study['name']}",
        "sections": sections,
        "kicker": " · ".join([cells, words.plural(len(comparison.methods), "method"), seeds]),
        "source": f"Made by Forefed from the records of {cells}.",
    }
    write_atomic(folder / "results.md", render("comparison.md.j2", **context).encode())
    write_atomic(folder / "results.html", render("comparison.html.j2", **context).encode())


def main_tables(folder: Path) -> list[Table]:
    """The main table of every place, and where each method loses (for the terminal)."""
    comparison = read_comparison(folder)
    results = results_of(comparison)
    return [*main(comparison, results).tables, *loses(comparison, results).tables]
