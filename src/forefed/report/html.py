"""One self-contained HTML file about one run or several: no script, nothing loaded from elsewhere.

Whatever comes from a record (names, labels, settings) is text to the page and is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.types import Json
from forefed.report import blocks, palette, plots, tables, words
from forefed.report.document import document
from forefed.report.headline import headline
from forefed.report.notes import NOTES
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
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs compared"
    body = "\n".join(
        part
        for part in (
            _head(runs, title),
            blocks.section("Curves", _curves(runs, names)),
            blocks.section("Results and costs", blocks.table(tables.result_rows(runs), names)),
            blocks.section("Who holds what", _partitions(runs, names)),
            blocks.section("Lost answers", _losses(runs, names)),
            blocks.section("Settings", _settings(runs, names)),
            blocks.section("Environment", _environment(runs, names)),
            blocks.section("What the numbers mean", _notes(runs)),
        )
        if part
    )
    source = (
        f"Made by Forefed from the record files of {words.plural(len(runs), 'run')}:\n"
        f"{escape(', '.join(str(run.folder) for run in runs))}."
    )
    return document(title, body, source)


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise UserError("report: give at least one run folder, for example runs/NAME")
    measured = {run.metric: run for run in runs if run.metric}
    if len(measured) > 1:
        facts = " and ".join(
            f"{run.folder} measures {metric.title}" for metric, run in measured.items() if metric
        )
        raise UserError(f"{facts}; runs of different tasks need a report each")


def _head(runs: Sequence[Run], title: str) -> str:
    one = runs[0] if len(runs) == 1 else None
    kicker = "Forefed, federated fine-tuning"
    if one:
        config = one.config
        facts = [
            (config.get("strategy") or {}).get("name"),
            (config.get("model") or {}).get("name"),
            (config.get("adapter") or {}).get("kind"),
        ]
        kicker = " · ".join(str(fact) for fact in facts if fact)
        clients = one.partition.get("clients", 0)
        kicker += f" · {clients:,} clients, {config.get('cohort')} per round"
    torn = sum(run.torn for run in runs)
    warning = (
        f'<p class="note warning">{words.plural(torn, "line")} at the end of a record file '
        "was cut off while it was written, and is left out.</p>"
        if torn
        else ""
    )
    return (
        f'<header>\n<p class="kicker">{escape(kicker)}</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="headline">{blocks.unbroken(escape(headline(runs)))}</p>\n{warning}'
        f"{_ruler(one) if one else ''}{_cards(one) if one else _run_cards(runs)}\n</header>"
    )


def _ruler(run: Run) -> str:
    """A share on a scale from 0 to 1, between what costs nothing and what is perfect."""
    value = run.quality(run.final)
    if value is None or run.majority is None or not run.metric or run.metric.scale != "share":
        return ""
    at = 100 * run.majority
    always = f"{words.always(run.metric)} {at:.1f} %"
    side = "left" if at < 15 else "right" if at > 85 else ""
    return (
        f'<div class="ruler" role="img" aria-label="{words.title(run.metric)} {100 * value:.1f} %, '
        f'{always}"><i style="width:{100 * value:.2f}%"></i>'
        f'<span class="{side}" style="left:{at:.2f}%"><em>{always}</em>'
        "</span></div>\n"
    )


def _cards(run: Run) -> str:
    up, down = tables.up_per_answer(run), tables.down_per_order(run)
    lost = sum(run.lost.values())
    quality = words.quality(run.metric, run.quality(run.final), unit=False)
    untrained = words.quality(run.metric, run.untrained, unit=False)
    best = words.quality(run.metric, run.quality(run.best), unit=False)
    cards = [
        (
            f"Test {words.title(run.metric)}",
            quality,
            f"untrained {untrained}, best {best}",
        ),
        ("Up, per answer", words.size(up), f"{words.size(run.total('bytes_up'))} in all"),
        ("Down, per order", words.size(down), f"{words.size(run.total('bytes_down'))} in all"),
        ("Forward-equivalents", words.short(run.total("forwards")), "passes over one example"),
        (
            "Peak memory",
            words.size(run.memory("peak_above_weights")),
            f"above weights; process {words.size(run.memory('rss'))}",
        ),
        (
            "Wall time",
            words.duration(run.seconds),
            f"{words.plural(run.done, 'round')}; {lost:,} of {run.orders:,} answers lost",
        ),
    ]
    return '<div class="cards">\n' + "\n".join(blocks.card(*card) for card in cards) + "\n</div>"


def _run_cards(runs: Sequence[Run]) -> str:
    cards = []
    for index, (run, name) in enumerate(zip(runs, run_labels(runs), strict=True)):
        quality = words.quality(run.metric, run.quality(run.final), unit=False)
        state = f"rounds: {tables.progress(run)}"
        traffic = run.total("bytes_up") + run.total("bytes_down")
        peak = words.size(run.memory("peak_above_weights"))
        cards.append(
            f'<div class="card"><h3>{palette.line_swatch(index)} {escape(name)}</h3>'
            f"<b>{escape(quality)}</b><small>{escape(state)}, {words.duration(run.seconds)}</small>"
            f"<small>{words.size(traffic)} sent</small><small>{peak} above weights</small>"
            f"<small>{words.short(run.total('forwards'))} forward-equivalents</small></div>"
        )
    return '<div class="cards runs">\n' + "\n".join(cards) + "\n</div>"


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    quality = tables.quality_name(runs)
    longest = max(run.done for run in runs)
    span = plots.smoothing(longest)
    loss = "mean loss of the clients of a round" + (
        f"; thick: mean of the last {span} rounds" if span > 1 else ""
    )
    of_round = "all its phases" if len(runs) == 1 else "mean over the rounds of each run"
    every = [
        blocks.figure(
            "Quality over rounds",
            f"{quality} of the global model on the test set",
            plots.quality_plot(runs, "round", wide=True),
            wide=True,
        ),
        blocks.figure(
            "Quality for its bytes",
            f"{quality}; encoded messages, both ways",
            plots.quality_plot(runs, "bytes"),
        ),
        blocks.figure(
            "Quality for its compute",
            f"{quality}; forward-equivalents of all clients",
            plots.quality_plot(runs, "forwards"),
        ),
        blocks.figure("Training loss", loss, plots.loss_plot(runs)),
        blocks.figure(
            "Where a round's time goes",
            of_round,
            plots.seconds_plot(runs, names),
            legend=_phase_legend(runs),
        ),
    ]
    drawn = [figure for figure in every if figure]
    if not drawn:
        return '<p class="quiet">Nothing to draw yet: no round and no evaluation is recorded.</p>'
    return f'{_run_legend(runs, names)}<div class="plots">\n' + "\n".join(drawn) + "\n</div>"


def _run_legend(runs: Sequence[Run], names: Sequence[str]) -> str:
    items = [palette.line_swatch(i) + escape(name) for i, name in enumerate(names)]
    if any(line.get("split") == "clients" for run in runs for line in run.evaluations):
        items.append("<span>dotted with rings: on clients' own test texts</span>")
    elif len(runs) == 1:
        return ""
    return blocks.legend(items)


def _phase_legend(runs: Sequence[Run]) -> str:
    spent = [plots.phase_seconds(run) for run in runs]
    return blocks.legend(
        [
            palette.box_swatch(palette.PHASE_COLOURS[phase]) + phase
            for phase in palette.PHASES
            if any(seconds[phase].sum() > 0 for seconds in spent)
        ]
    )


def _partitions(runs: Sequence[Run], names: Sequence[str]) -> str:
    """One picture per different partition."""
    groups: list[tuple[Json, list[int]]] = []
    for index, run in enumerate(runs):
        same = next((members for held, members in groups if held == run.partition), None)
        if same is None:
            groups.append((run.partition, [index]))
        else:
            same.append(index)
    parts = []
    for number, (partition, members) in enumerate(groups):
        facts = tables.partition_facts(partition)
        labels = label_names(partition)
        if plots.is_map(partition):
            legend = blocks.legend(
                [
                    '<span class="scale"></span> share of a client\'s examples with '
                    "this label, 0 to 100 %"
                ]
            )
        else:
            legend = blocks.legend(
                [
                    palette.box_swatch(i) + escape(words.cut(label, 60))
                    for i, label in enumerate(labels)
                ]
            )
        caption = "clients by size, and the labels they hold" if labels else "clients by size"
        who = "" if len(groups) == 1 else f"<h3>{escape(', '.join(names[i] for i in members))}</h3>"
        svg = plots.partition_plot(partition, f"partition{number}")
        picture = blocks.figure("The partition", caption, svg, legend=legend)
        parts.append(who + blocks.columns(facts) + picture)
    return '<div class="parts">' + "\n".join(parts) + "</div>"


def _losses(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = tables.loss_rows(runs)
    orders = sum(run.orders for run in runs)
    if not orders:
        return ""
    if not rows:
        return f"<p>None: all {orders:,} orders were answered.</p>"
    empty = sum(not line.get("replies") for run in runs for line in run.rounds)
    silent = (
        f"<p>In {words.plural(empty, 'round')} nobody answered; the model stayed as it was.</p>"
        if empty
        else ""
    )
    return blocks.table(rows, names) + silent


def _settings(runs: Sequence[Run], names: Sequence[str]) -> str:
    return blocks.folded(tables.settings_rows(runs), names, "settings that all runs share")


def _environment(runs: Sequence[Run], names: Sequence[str]) -> str:
    return blocks.folded(tables.environment_rows(runs), names, "facts that all runs share")


def _notes(runs: Sequence[Run]) -> str:
    measures = next((run.measures for run in runs if run.measures), None)
    metrics = [(m.title, m.about) for m in (measures.metrics if measures else ()) if m.about]
    notes = (*metrics, *NOTES)
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in notes)
    return f"<dl>{terms}</dl>"
