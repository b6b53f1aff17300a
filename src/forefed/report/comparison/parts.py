"""What a comparison says, part by part; ``templates/comparison.*`` write these parts down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forefed.core.types import Json
from forefed.report import words
from forefed.report.comparison.cells import Comparison, Place
from forefed.report.comparison.figures import by_setting, curves
from forefed.report.comparison.loses import losses, pairing, settings_tables
from forefed.report.comparison.statistics import Interval
from forefed.report.comparison.table import (
    COSTS,
    Result,
    difference_text,
    quality_text,
    results_of,
)
from forefed.report.comparison.views import (
    budget_rows,
    cost_to,
    lost_quality,
    near,
    robustness,
    target_of,
    under_budgets,
)
from forefed.report.pages import Figure
from forefed.report.plots import Against


@dataclass(frozen=True)
class Table:
    """Texts: one head per column, the first column names the row. ``**x**`` is emphasised.

    ``words``: the columns hold text, not numbers; ``folded``: shown on request.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Part:
    """A section: paragraphs, then tables with what stands above them, then figures (page only)."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    figures: tuple[Figure, ...] = ()


def overview_part(comparison: Comparison, results: Sequence[Result]) -> Part | None:
    """Methods against places, where there are several: quality, compute and bytes at a glance."""
    if len(comparison.places) < 2:
        return None
    by = {(r.place, r.method): r for r in results}
    heads = ("", *comparison.methods)

    def table(text: Callable[[Result], str]) -> Table:
        rows = ((p.label, *(text(by[p, m]) for m in comparison.methods)) for p in comparison.places)
        return Table(heads, tuple(rows))

    def in_all(*keys: str) -> Callable[[Result], float | None]:
        return lambda r: sum(r.costs[k] for k in keys) if keys[0] in r.costs else None

    passes, traffic = in_all("forwards"), in_all("bytes_up", "bytes_down")
    quality = f"final {words.title(comparison.metric)}"
    return Part(
        "Overview",
        ("The last round's quality, and what the whole run took; means over seeds.",),
        (
            (quality, table(lambda r: quality_text(comparison.metric, r.quality))),
            ("forward-equivalents", table(lambda r: words.short(passes(r)))),
            ("bytes both ways", table(lambda r: words.size(traffic(r)))),
        ),
    )


def main_part(comparison: Comparison, results: Sequence[Result]) -> Part:
    """Final quality and costs, one table per place."""
    metric = comparison.metric
    quality = f"final {words.title(metric)}"
    unit = words.scaled(metric)[2].strip()
    heads = (
        "method",
        quality,
        f"difference to {comparison.reference}" + (f" ({unit})" if unit else ""),
        "seeds",
        "rounds",
        *(cost.title for cost in COSTS),
    )
    tables = []
    for place in comparison.places:
        rows = [
            (
                r.method,
                quality_text(metric, r.quality),
                difference_text(metric, r.difference),
                seeds_text(r),
                f"{r.rounds}",
                *(cost.text(r.costs.get(cost.key)) for cost in COSTS),
            )
            for r in results
            if r.place == place
        ]
        caption = "; ".join(text for text in (place.label, _baselines(comparison, place)) if text)
        tables.append((caption, Table(heads, tuple(rows))))
    return Part(
        "Results",
        (
            "Mean over seeds of the last round's quality on the test set ± half of Student's 95 % "
            "interval. Differences are paired by seed; a star marks an interval without 0. Costs "
            "are means over seeds, memory the largest.",
        ),
        tuple(tables),
    )


def seeds_text(result: Result) -> str:
    """As in "2 (1 failed)"; a seed that has not run is no failure."""
    without = [(result.failed, "failed"), (result.waiting, "not run")]
    said = ", ".join(f"{count} {what}" for count, what in without if count)
    return f"{len(result.qualities)}" + (f" ({said})" if said else "")


def _baselines(comparison: Comparison, place: Place) -> str:
    """What costs nothing: "most frequent class 50.1 %, untrained 49.0 %"."""
    runs = [run for m in comparison.methods for run in comparison.runs(place, m).values()]
    parts = []
    for name in dict.fromkeys(name for run in runs for name in run.baselines):
        values = [run.baselines[name] for run in runs if name in run.baselines]
        mean = Interval(sum(values) / len(values), None, 1)
        parts.append(f"{name} {quality_text(comparison.metric, mean)}")
    return ", ".join(parts)


def curves_part(comparison: Comparison) -> Part:
    """Quality over rounds, bytes and compute, at every place."""
    figures = []
    kinds: tuple[tuple[Against, str], ...] = (
        ("round", "Quality over rounds"),
        ("bytes", "Quality for its bytes"),
        ("forwards", "Quality for its compute"),
    )
    for number, place in enumerate(comparison.places):
        for against, title in kinds:
            svg = curves(comparison, place, against, f"curves-{number}-{against}")
            if svg:
                caption = place.label or "mean and range of the seeds"
                figures.append(Figure(title, caption, svg, wide=against == "round"))
    return Part(
        "Curves", ("Mean over seeds; the band is the range of the seeds.",), (), tuple(figures)
    )


def failed_part(comparison: Comparison) -> Part | None:
    """Cells without a result, with the reason."""
    rows = [(c.name, c.error or "not finished") for c in comparison.cells if c.run is None]
    if not rows:
        return None
    return Part(
        "Cells without a result", (), (("", Table(("cell", "reason"), tuple(rows), words=True)),)
    )


def tuning_part(comparison: Comparison) -> Part | None:
    """What was tuned, within which budget."""
    chosen = comparison.study["tuning"]
    if not chosen:
        return None
    rows = [
        (
            " on ".join(part for part in (c["method"], c["dataset"]) if part),
            f"{c['runs']} runs of {words.plural(c['rounds'], 'round')}",
            ", ".join(f"{key} = {value}" for key, value in c["best"].items()),
            ", ".join(c["edges"]) or "no",
            "; ".join(_tried(comparison, t) for t in c["tried"]),
        )
        for c in chosen
    ]
    return Part(
        "Tuning",
        (
            "Each grid was run on part of the training rows, held out for validation; no test row "
            "was read. A winner on the edge of its grid may be beaten by a value outside it.",
        ),
        (
            (
                "",
                Table(
                    ("method", "budget", "chosen", "on the edge", "tried"), tuple(rows), words=True
                ),
            ),
        ),
    )


def _tried(comparison: Comparison, tried: Json) -> str:
    settings = ", ".join(str(value) for value in tried["settings"].values())
    if "loss" not in tried:
        return f"{settings}: {words.quality(comparison.metric, tried['quality'], unit=False)}"
    return f"{settings}: " + ("no number" if tried["loss"] is None else f"loss {tried['loss']:.4f}")


def loses_part(comparison: Comparison, results: Sequence[Result]) -> Part:
    """The worst view of every method."""
    rows = tuple(losses(comparison, results))
    return Part(
        "Where each method loses",
        ("The largest gap in quality and the largest ratio of costs, each to the best method.",),
        (("", Table(("method", "worst"), rows, words=True)),),
    )


def budget_part(comparison: Comparison, results: Sequence[Result]) -> Part:
    """Quality under budgets of memory, bytes and compute."""
    tables = [
        (place.label, Table(("budget", *comparison.methods), budget_rows(comparison, found)))
        for place in comparison.places
        if (found := under_budgets(comparison, place, results))
    ]
    return Part(
        "Quality under a budget",
        (
            "The last evaluation that a budget allows, not the best one; for memory the final "
            "quality of what fits. A dash: it does not fit, or no round ends within the budget.",
        ),
        tuple(tables),
    )


def target_part(comparison: Comparison, results: Sequence[Result]) -> Part:
    """What it takes to reach a quality, the same for all and each method's own."""
    kinds = ("rounds", "bytes both ways", "forward-equivalents")
    heads = (
        "method",
        *(f"{kind} to the target" for kind in kinds),
        *(f"{kind} to 95 % of its own" for kind in kinds),
    )
    tables = []
    for place in comparison.places:
        target = target_of(comparison, results, place)
        if target is None:
            continue
        rows = []
        for method in comparison.methods:
            runs = list(comparison.runs(place, method).values())
            scored = [(run, q) for run in runs if (q := run.quality(run.final)) is not None]
            own = [near(comparison, quality) for _, quality in scored]
            common = cost_to(comparison, runs, [target] * len(runs))
            alone = cost_to(comparison, [run for run, _ in scored], own)
            rows.append((method, *common.texts(), *alone.texts()))
        shown = quality_text(comparison.metric, Interval(target, None, 1))
        caption = ", ".join(part for part in (place.label, f"target {shown}") if part)
        tables.append((caption, Table(heads, tuple(rows))))
    return Part(
        "Cost to a target",
        (
            "Until the first evaluation at the target, or at 95 % of the method's own final "
            "quality; means over the seeds that got there. A dash: never.",
        ),
        tuple(tables),
    )


def robustness_part(comparison: Comparison, results: Sequence[Result]) -> Part | None:
    """Quality by the values of every setting under ``over``."""
    found = robustness(comparison, results)
    if not found:
        return None
    tables, figures = [], []
    for number, view in enumerate(found):
        rows = [
            (
                method,
                *(quality_text(comparison.metric, i) for i in row),
                lost_quality(comparison.metric, row),
            )
            for method, row in view.by_method.items()
        ]
        others = [f"{key} = {value}" for key, value in view.others]
        caption = ", ".join(part for part in (view.dataset, view.key, *others) if part)
        heads = ("method", *(str(value) for value in view.values), "best to worst")
        svg = by_setting(comparison, view, f"robustness-{number}")
        figures.append(Figure(f"Quality by {view.key}", caption, svg))
        tables.append((caption, Table(heads, tuple(rows))))
    said = ("Final quality by the value of one setting; the others at their first.",)
    return Part("Robustness", said, tuple(tables), tuple(figures))


def protocol_part(comparison: Comparison) -> Part:
    """What was held equal, and what differs between the methods."""
    differing, common = settings_tables(comparison)
    tables = []
    if differing:
        tables.append(("Differs", Table(("setting", *comparison.methods), tuple(differing))))
    tables.append(
        (
            "The same for all methods",
            Table(("setting", "value"), tuple(common), words=True, folded=True),
        )
    )
    seeds = ", ".join(map(str, comparison.study["seeds"]))
    said = [f"Seeds: {seeds}.", pairing(comparison)]
    if len(comparison.places) > 1:
        said.append(f"Settings are those of {comparison.places[0].label}.")
    return Part("Protocol", tuple(text for text in said if text), tuple(tables))


def parts_of(comparison: Comparison) -> tuple[list[Result], list[Part]]:
    """All parts, in the order in which they are read."""
    results = results_of(comparison)
    parts = [
        overview_part(comparison, results),
        main_part(comparison, results),
        failed_part(comparison),
        loses_part(comparison, results),
        curves_part(comparison),
        budget_part(comparison, results),
        target_part(comparison, results),
        robustness_part(comparison, results),
        tuning_part(comparison),
        protocol_part(comparison),
    ]
    return results, [part for part in parts if part]
