"""What a comparison says in tables, section by section."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import facts, plots, words
from forefed.report.clients import SPREAD
from forefed.report.comparison.cells import Comparison, Place
from forefed.report.comparison.loses import losses, pairing, settings_rows
from forefed.report.comparison.results import (
    COSTS,
    Interval,
    Result,
    difference_text,
    ends_of,
    interval,
    quality_text,
)
from forefed.report.comparison.views import (
    budget_table,
    cost_to,
    near,
    target_of,
    under_budgets,
)
from forefed.report.content import Section, Table
from forefed.report.read import Run, finite
from forefed.report.sections import epsilon_of


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
                [(n, i.mean if i else None, ends_of(metric, i)) for n, i in bars],
                partial(words.tick, metric),
                own=len(here),
            )
        )
    return Section("Results", (), figures, tables)


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


def protocol(comparison: Comparison) -> Section:
    """What was held equal, and what differs between the methods."""
    tables = facts.folded(settings_rows(comparison), comparison.methods, "settings")
    seeds = ", ".join(map(str, comparison.study["seeds"]))
    said = [f"Seeds: {seeds}.", pairing(comparison)]
    if len(comparison.places) > 1:
        said.append(f"Settings are those of {comparison.places[0].label}.")
    return Section("Protocol", [text for text in said if text], tables=tables)
