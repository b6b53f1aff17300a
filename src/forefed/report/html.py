"""The page about one run or several: what stands on it, for ``templates/run.html.j2``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.types import Json
from forefed.report import palette, plots, tables, words
from forefed.report.headline import headline
from forefed.report.pages import Figure, figure, render
from forefed.report.questions import questions
from forefed.report.read import Run, label_names, run_labels


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write the report of these runs, overlaid in the order given, to ``path`` (atomically).

    Raises:
        UserError: no runs, runs whose quality is measured in different ways, or a path that
            cannot be written.
    """
    page = report_page(runs)
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file, for example {path}/report.html")
    try:
        write_atomic(path, page.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def report_page(runs: Sequence[Run]) -> str:
    """The whole page as text; raises like ``write_report``."""
    _check(runs)
    names = run_labels(runs)
    one = runs[0] if len(runs) == 1 else None
    torn = sum(run.torn for run in runs)
    empty = sum(not line.get("replies") for run in runs for line in run.rounds)
    measures = next((run.measures for run in runs if run.measures), None)
    return render(
        "run.html.j2",
        title=(one and names[0]) or f"{len(runs)} runs compared",
        names=names,
        kicker=_kicker(one),
        headline=headline(runs),
        warnings=[text[0].upper() + text[1:] + "." for text in one.shortfalls] if one else [],
        torn=torn and words.plural(torn, "line"),
        ruler=one and _ruler(one),
        cards=_cards(one) if one else _run_cards(runs, names),
        questions=questions(one) if one else [],
        curves=_curves(runs, names),
        legend=_run_legend(runs, names),
        results=tables.result_rows(runs),
        partitions=_partitions(runs, names),
        orders=sum(run.orders for run in runs),
        losses=tables.loss_rows(runs),
        silent=empty and words.plural(empty, "round"),
        settings=tables.settings_rows(runs),
        environment=tables.environment_rows(runs),
        metrics=measures.metrics if measures else (),
        source=f"Made by Forefed from the record files of {words.plural(len(runs), 'run')}: "
        f"{', '.join(str(run.folder) for run in runs)}.",
    )


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise UserError("report: give at least one run folder, for example runs/NAME")
    measured = {run.metric: run for run in runs if run.metric}
    if len(measured) > 1:
        facts = [f"{run.folder} measures {metric.title}" for metric, run in measured.items()]
        raise UserError(f"{' and '.join(facts)}; runs of different tasks need a report each")


def _kicker(run: Run | None) -> str:
    if run is None:
        return "Forefed, federated fine-tuning"
    named = {"strategy": "name", "model": "name", "adapter": "kind"}
    facts = [(run.config.get(section) or {}).get(key) for section, key in named.items()]
    clients = f"{run.partition.get('clients', 0):,} clients, {run.config.get('cohort')} per round"
    return " · ".join([*(str(fact) for fact in facts if fact), clients])


def _ruler(run: Run) -> Json | None:
    """A share on a scale from 0 to 1, between what costs nothing and what is perfect."""
    value, metric = run.quality(run.final), run.metric
    if value is None or run.majority is None or not metric or metric.scale != "share":
        return None
    at = 100 * run.majority
    always = f"{metric.chance} {at:.1f} %"
    return {
        "value": 100 * value,
        "at": at,
        "always": always,
        "side": "left" if at < 15 else "right" if at > 85 else "",
        "said": f"{metric.title} {100 * value:.1f} %, {always}",
    }


def _card(name: str, value: str, *details: str) -> Json:
    return {"name": name, "value": value, "details": details}


def _cards(run: Run) -> list[Json]:
    def shown(value: float | None) -> str:
        return words.quality(run.metric, value, unit=False)

    up, down = tables.up_per_answer(run), tables.down_per_order(run)
    lost = sum(run.lost.values())
    best = f"{run.before} {shown(run.untrained)}, best {shown(run.quality(run.best))}"
    peak, rss = run.memory("peak_above_weights"), run.memory("rss")
    end = f"{words.plural(run.done, 'round')}; {lost:,} of {run.orders:,} answers lost"
    passes = words.short(run.total("forwards"))
    return [
        _card(f"Test {words.title(run.metric)}", shown(run.quality(run.final)), best),
        _card("Up, per answer", words.size(up), f"{words.size(run.total('bytes_up'))} in all"),
        _card("Down, per order", words.size(down), f"{words.size(run.total('bytes_down'))} in all"),
        _card("Forward-equivalents", passes, "passes over one example"),
        _card("Peak memory", words.size(peak), f"above weights; process {words.size(rss)}"),
        _card("Wall time", words.duration(run.seconds), end),
    ]


def _run_cards(runs: Sequence[Run], names: Sequence[str]) -> list[Json]:
    return [
        _card(
            palette.line_swatch(index) + " " + name,
            words.quality(run.metric, run.quality(run.final), unit=False),
            f"rounds: {tables.progress(run)}, {words.duration(run.seconds)}",
            f"{words.size(run.total('bytes_up') + run.total('bytes_down'))} sent",
            f"{words.size(run.memory('peak_above_weights'))} above weights",
            f"{words.short(run.total('forwards'))} forward-equivalents",
        )
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


def _curves(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    quality = tables.quality_name(runs)
    span = plots.smoothing(max(run.done for run in runs))
    loss = "mean loss of the clients of a round"
    loss += f"; thick: mean of the last {span} rounds" if span > 1 else ""
    spent = [plots.phase_seconds(run) for run in runs]
    phases = [
        palette.box_swatch(palette.PHASE_COLOURS[phase]) + phase
        for phase in palette.PHASES
        if any(seconds[phase].sum() > 0 for seconds in spent)
    ]
    of_round = "all its phases" if len(runs) == 1 else "mean over the rounds of each run"
    return [
        *figure(
            "Quality over rounds",
            f"{quality} of the global model on the test set",
            plots.quality_plot(runs, "round", wide=True),
            wide=True,
        ),
        *figure(
            "Quality for its bytes",
            f"{quality}; encoded messages, both ways",
            plots.quality_plot(runs, "bytes"),
        ),
        *figure(
            "Quality for its compute",
            f"{quality}; forward-equivalents of all clients",
            plots.quality_plot(runs, "forwards"),
        ),
        *figure("Training loss", loss, plots.loss_plot(runs)),
        *figure(
            "Where a round's time goes", of_round, plots.seconds_plot(runs, names), legend=phases
        ),
    ]


def _run_legend(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    items: list[str] = [palette.line_swatch(i) + name for i, name in enumerate(names)]
    if any(line.get("split") == "clients" for run in runs for line in run.evaluations):
        return [*items, Markup("<span>dotted with rings: on clients' own test texts</span>")]
    return [] if len(runs) == 1 else items


def _partitions(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """One picture per different partition."""
    groups: list[tuple[Json, list[int]]] = []
    for index, run in enumerate(runs):
        same = next((members for held, members in groups if held == run.partition), None)
        if same is None:
            groups.append((run.partition, [index]))
        else:
            same.append(index)
    found = []
    for number, (partition, members) in enumerate(groups):
        labels = label_names(partition)
        swatches: list[str] = [
            palette.box_swatch(i) + words.cut(label, 60) for i, label in enumerate(labels)
        ]
        if plots.is_map(partition):
            share = "share of a client's examples with this label, 0 to 100 %"
            swatches = [Markup('<span class="scale"></span> ') + share]
        caption = "clients by size, and the labels they hold" if labels else "clients by size"
        svg = plots.partition_plot(partition, f"partition{number}")
        picture = figure("The partition", caption, svg, legend=swatches)
        found.append(
            {
                "who": ", ".join(names[i] for i in members) if len(groups) > 1 else "",
                "facts": tables.partition_facts(partition),
                "figure": picture[0] if picture else None,
            }
        )
    return found
