"""The page about one run or several: a section per question that a person asks of a run.

Did it learn? What does it confuse? Whom does it serve badly? May its probabilities be believed?
What did it cost? What protects the clients? A question that the record does not answer is left out,
or says how to have it answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.types import Json
from forefed.report import clients, facts, words
from forefed.report import sections as of
from forefed.report.content import Table
from forefed.report.headline import headline
from forefed.report.pages import render
from forefed.report.read import Run, run_labels


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
    sections = [
        of.learnt(runs, names),
        *(
            [of.confused(one), clients.served(one), of.believed(one)]
            if one
            else [clients.served_together(runs, names)]
        ),
        of.cost(runs, names),
        of.protected(runs, names),
        *of.held(runs, names),
        of.settings(runs, names),
    ]
    measures = next((run.measures for run in runs if run.measures), None)
    return render(
        "run.html.j2",
        title=names[0] if one else f"{len(runs)} runs compared",
        kicker=_kicker(one),
        headline=headline(runs),
        warnings=warnings(runs, names),
        notes=[words.sentence(str(n)) for r in runs for n in (r.start or {}).get("notes") or ()],
        cards=_cards(one) if one else (),
        sections=[section for section in sections if not section.empty],
        metrics=measures.metrics if measures else (),
        source=f"Made by Forefed from the record files of {words.plural(len(runs), 'run')}: "
        f"{', '.join(str(run.folder) for run in runs)}.",
    )


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise UserError("report: give at least one run folder, for example runs/NAME")
    measured = {run.metric: run for run in runs if run.metric}
    if len(measured) > 1:
        said = [f"{run.folder} measures {metric.title}" for metric, run in measured.items()]
        raise UserError(f"{' and '.join(said)}; runs of different tasks need a report each")


def warnings(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """What a reader must know first, each with its remedy where there is one."""
    found = []
    for run, name in zip(runs, names, strict=True):
        whose = f"{name}: " if len(runs) > 1 else ""
        found += [whose + words.sentence(text) for text in run.shortfalls]
    torn = sum(run.torn for run in runs)
    if torn:
        found.append(
            f"{words.plural(torn, 'line')} at the end of a record file was cut off while it was "
            "written, and is left out."
        )
    return found


def _kicker(run: Run | None) -> str:
    if run is None:
        return "Forefed, federated fine-tuning"
    named = {"strategy": "name", "model": "name", "adapter": "kind"}
    found = [(run.config.get(section) or {}).get(key) for section, key in named.items()]
    size = f"{run.partition.get('clients', 0):,} clients, {run.config.get('cohort')} per round"
    return " · ".join([*(Path(str(each)).name for each in found if each), size])


def _cards(run: Run) -> list[Json]:
    def card(name: str, value: str, *details: str) -> Json:
        return {"name": name, "value": value, "details": details}

    def shown(value: float | None) -> str:
        return words.quality(run.metric, value, unit=False)

    up, down = facts.up_per_answer(run), facts.down_per_order(run)
    best = f"{run.before} {shown(run.untrained)}, best {shown(run.quality(run.best))}"
    peak, rss = run.memory("peak_above_weights"), run.memory("rss")
    lost = sum(run.lost.values())
    end = f"{words.plural(run.done, 'round')}; {lost:,} of {run.orders:,} answers lost"
    title = run.metric.title if run.metric else "quality"
    passes = words.short(run.total("forwards"))
    return [
        card(f"Test {title}", shown(run.quality(run.final)), best),
        card("Up, per answer", words.size(up), f"{words.size(run.total('bytes_up'))} in all"),
        card("Down, per order", words.size(down), f"{words.size(run.total('bytes_down'))} in all"),
        card("Forward-equivalents", passes, "passes over one example"),
        card("Peak memory", words.size(peak), f"above weights; process {words.size(rss)}"),
        card("Wall time", words.duration(run.seconds), end),
    ]


def terminal_tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """What ``forefed report`` prints: who holds what, of one run, and results and costs."""
    rows = [*facts.quality_rows(runs), *facts.cost_rows(runs)]
    for split, (_, *shown) in clients.spread_rows(runs[0]).items() if len(runs) == 1 else ():
        what = f"clients ({clients.MODELS[split]}): {', '.join(clients.SPREAD)}"
        rows.append((what, " / ".join(shown)))
    results = Table(("", *run_labels(runs)), rows)
    return (facts.partition_table(runs[0].partition), results) if len(runs) == 1 else (results,)
