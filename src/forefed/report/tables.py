"""Tables of results, settings and partitions: rows for the page, rich tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import words
from forefed.report.read import Run, finite, label_names, run_labels

if TYPE_CHECKING:
    from rich.table import Table

MOST_CLIENTS = 12  # rows of the terminal's partition table
BAR = 24  # characters of its longest bar
_TERMINAL = ("blue", "red", "green", "magenta", "yellow", "cyan", "white", "bright_black")


@dataclass(frozen=True)
class Row:
    """One row of a table: a name and one text per run."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def result_rows(runs: Sequence[Run]) -> list[Row]:
    """Everything a run achieved and what it cost, one value per run."""

    def row(name: str, values: list[str]) -> Row:
        return Row(name, tuple(values))

    measures = next((run.measures for run in runs if run.measures), None)
    others = measures.metrics[1:] if measures else ()
    cheaper = dict.fromkeys(name for run in runs for name in run.baselines)
    rows = [
        row("rounds", [progress(run) for run in runs]),
        row(f"final {quality_name(runs)}", [_scored(run, run.final) for run in runs]),
        row(f"best {quality_name(runs)}", [_best(run) for run in runs]),
        *(row(f"final {m.title}", [_other(m, run) for run in runs]) for m in others),
        *(row(name, [_quality(run, run.baselines.get(name)) for run in runs]) for name in cheaper),
        row("bytes up per answer", [words.size(up_per_answer(run)) for run in runs]),
        row("bytes down per order", [words.size(down_per_order(run)) for run in runs]),
        row("bytes up in all", [words.size(run.total("bytes_up")) for run in runs]),
        row("bytes down in all", [words.size(run.total("bytes_down")) for run in runs]),
        row("forward-equivalents", [words.whole(run.total("forwards")) for run in runs]),
        row("wall time of the rounds", [words.duration(run.seconds) for run in runs]),
        row("wall time per round", [words.duration(_ratio(run.seconds, run.done)) for run in runs]),
        row(
            "peak memory above weights",
            [words.size(run.memory("peak_above_weights")) for run in runs],
        ),
        row("peak resident memory", [words.size(run.memory("rss")) for run in runs]),
        row("answers lost", [_lost(run) for run in runs]),
        row("clients asked at least once", [_asked(run) for run in runs]),
        row("local steps skipped", [_skipped(run) for run in runs]),
    ]
    return rows


def quality_name(runs: Sequence[Run]) -> str:
    metrics = {run.metric for run in runs} - {None}
    return words.title(metrics.pop() if len(metrics) == 1 else None)


def progress(run: Run) -> str:
    if run.finished:
        return f"{run.done:,}"
    planned = "?" if run.planned is None else f"{run.planned:,}"
    return f"{run.done:,} of {planned}, not finished"


def up_per_answer(run: Run) -> float | None:
    """Mean bytes that one answering client sent."""
    return _ratio(run.total("bytes_up"), run.total("replies"))


def down_per_order(run: Run) -> float | None:
    """Mean bytes that one asked client was sent."""
    return _ratio(run.total("bytes_down"), run.orders)


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: ``{"client": {"lr": 1}}`` -> ``{"client.lr": 1}``."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def compare(tables: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per key of any of these flat tables, in the order in which keys first appear."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [Row(name, tuple(words.setting(table.get(name)) for table in tables)) for name in names]


def settings_rows(runs: Sequence[Run]) -> list[Row]:
    """The configurations, without the name and place that every run has of its own."""
    tables = [flat(run.config) for run in runs]
    return compare([{k: v for k, v in t.items() if k not in ("name", "out")} for t in tables])


def environment_rows(runs: Sequence[Run]) -> list[Row]:
    """Versions, machine, model and data of each run."""
    tables = []
    for run in runs:
        model = dict(run.environment.get("model") or {})
        if isinstance(model.get("units"), list):
            model["units"] = len(model["units"])
        for key in ("parameters", "trainable"):
            model[key] = words.whole(finite(model.get(key)))
        model["weights"] = words.size(finite(model.pop("weights_bytes", None)))
        tables.append(flat({**run.environment, "model": model}))
    return compare(tables)


def loss_rows(runs: Sequence[Run]) -> list[Row]:
    """Lost answers by reason, with the simulated probability where there is one."""
    reasons = list(dict.fromkeys(reason for run in runs for reason in run.lost))
    rows = []
    for reason in reasons:
        values = []
        for run in runs:
            share = (_ratio(run.lost.get(reason, 0), run.orders) or 0.0) * 100
            text = f"{run.lost.get(reason, 0):,} ({share:.1f} % of orders"
            simulated = finite((run.config.get("faults") or {}).get(reason)) or 0.0
            text += f"; {100 * simulated:.3g} % simulated)" if simulated else ")"
            values.append(text)
        rows.append(Row(reason, tuple(values)))
    return rows


def partition_facts(partition: Json) -> list[Row]:
    """Who holds what, in a few numbers."""
    sizes = [int(n) for n in partition.get("sizes") or []]
    clients = int(partition.get("clients") or len(sizes))
    shown = f" (the first {len(sizes):,} are shown)" if len(sizes) < clients else ""
    rows = [
        Row("kind", (words.setting(partition.get("kind")),)),
        Row("clients", (f"{clients:,}{shown}",)),
    ]
    if sizes:
        spread = f"{min(sizes):,} / {median(sizes):,.4g} / {max(sizes):,}"
        rows.append(Row("training examples", (f"{sum(sizes):,}",)))
        rows.append(Row("smallest / median / largest client", (spread,)))
    held = [counts for counts in partition.get("counts") or [] if sum(counts)]
    if label_names(partition) and held:
        kinds = median(sum(n > 0 for n in counts) for counts in held)
        share = median(max(counts) / sum(counts) for counts in held)
        known = len(partition["labels"])
        rows.append(Row("labels of a median client", (f"{kinds:g} of {known}",)))
        rows.append(Row("share of its most frequent label", (f"{100 * share:.0f} %",)))
    return rows


def results_table(runs: Sequence[Run]) -> Table:
    """Results and costs of the runs for the terminal, one column per run."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for label in run_labels(runs):
        table.add_column(Text(label), justify="right")
    for row in result_rows(runs):
        table.add_row(Text(row.name, style="dim"), *(Text(value) for value in row.values))
    return table


def partition_table(summary: Json) -> Table:
    """Who holds what for the terminal: some clients from the largest to the smallest.

    Args:
        summary: the content of ``partition.json``.
    """
    from rich.table import Table
    from rich.text import Text

    sizes = [int(n) for n in summary.get("sizes") or []]
    labels = label_names(summary)
    order = sorted(range(len(sizes)), key=lambda client: -sizes[client])
    picked = _spread(order, MOST_CLIENTS)
    facts = "\n".join(f"{row.name}: {row.values[0]}" for row in partition_facts(summary))
    shown = f"{len(picked)} of {len(order):,} clients, from the largest to the smallest"
    caption = Text(f"{facts}\n{shown}", style="dim")
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption=caption,
        min_width=56,  # the caption is folded at the table's width
        caption_justify="left",
    )
    for name, justify in (("client", "right"), ("examples", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    if labels:
        table.add_column("most frequent labels")
    for client in picked:
        counts = summary["counts"][client] if labels else [sizes[client]]
        top = sorted((i for i, n in enumerate(counts) if n), key=lambda i: -counts[i])[:3]
        cells = [
            Text(str(client)),
            Text(f"{sizes[client]:,}"),
            _bar(counts, max(1, sizes[order[0]])),
        ]
        if labels:
            cells.append(Text(", ".join(f"{words.cut(labels[i])} {counts[i]:,}" for i in top)))
        table.add_row(*cells)
    return table


def _bar(counts: Sequence[int], largest: int) -> Any:
    """A bar of blocks; every colour ends where the running sum of the counts does."""
    from rich.text import Text

    bar, drawn, total = Text(), 0, 0
    for label, count in enumerate(counts):
        total += count
        stop = round(BAR * total / largest)
        bar.append("█" * (stop - drawn), style=_TERMINAL[label % len(_TERMINAL)])
        drawn = stop
    return bar


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _quality(run: Run, value: float | None) -> str:
    return words.quality(run.metric, value, unit=False)


def _other(metric: Metric, run: Run) -> str:
    return words.quality(metric, metric.of(run.final), unit=False)


def _scored(run: Run, line: Json | None) -> str:
    """Quality with its 95 % interval."""
    shown, ends = _quality(run, run.quality(line)), run.interval(line)
    return f"{shown} ({words.between(run.metric, ends)})" if ends and run.metric else shown


def _best(run: Run) -> str:
    best = run.best
    return (
        words.ABSENT
        if best is None
        else (f"{_quality(run, run.quality(best))} (round {best['round']:,})")
    )


def _lost(run: Run) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in run.lost.items())
    return f"{sum(run.lost.values()):,} of {run.orders:,}{f' ({reasons})' if reasons else ''}"


def _asked(run: Run) -> str:
    asked = {client for line in run.rounds for client in line.get("cohort") or ()}
    return f"{len(asked):,} of {words.whole(finite(run.partition.get('clients')))}"


def _skipped(run: Run) -> str:
    steps = run.total("steps")
    skipped = words.whole(run.total("skipped"))
    return f"{skipped} of {steps:,.0f}" if steps else skipped
