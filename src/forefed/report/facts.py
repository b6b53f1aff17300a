"""Tables of runs: results, costs, losses, settings, partitions; for the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import words
from forefed.report.content import Table
from forefed.report.read import Run, finite, label_names

MOST_CLIENTS = 12
"""Rows of the terminal's partition table."""
FOLDED = 12
"""Rows from which a table is folded away."""
BAR = 24
"""Characters of its longest bar."""
Rows = list[tuple[str, ...]]


def quality_rows(runs: Sequence[Run]) -> Rows:
    """What the runs reached, and what costs less."""
    measures = next((run.measures for run in runs if run.measures), None)
    if measures is None:
        return []
    first, *others = measures.metrics

    def scored(run: Run) -> str:
        shown, ends = _quality(run, run.quality(run.final)), run.interval(run.final)
        return f"{shown} ({words.between(first, ends)})" if ends else shown

    def best(run: Run) -> str:
        if run.best is None:
            return words.ABSENT
        return f"{_quality(run, run.quality(run.best))} (round {run.best['round']:,})"

    cheaper = dict.fromkeys(name for run in runs for name in run.baselines)
    weighed = any((run.start or {}).get("steps") for run in runs)
    return [
        (f"final {first.title}", *map(scored, runs)),
        (f"best {first.title}", *map(best, runs)),
        *((f"final {m.title}", *(_of(m, run.final) for run in runs)) for m in others),
        *((name, *(_quality(run, run.baselines.get(name)) for run in runs)) for name in cheaper),
        *([("steps after the solved head", *map(_steps, runs))] if weighed else []),
    ]


@dataclass(frozen=True)
class Cost:
    """One measure of what a run took: less is better. ``key``: its name in the results of a
    comparison, where methods are compared by it."""

    title: str
    of: Callable[[Run], float | None]
    text: Callable[[float | None], str]
    key: str = ""


def up_per_answer(run: Run) -> float | None:
    """Mean bytes that one answering client sent in a round."""
    return _ratio(run.total("bytes_up", started=False), run.total("replies", started=False))


def down_per_order(run: Run) -> float | None:
    """Mean bytes that one asked client was sent in a round."""
    return _ratio(run.total("bytes_down", started=False), run.orders)


def _client_seconds(run: Run) -> float | None:
    spent = sum((line.get("seconds") or {}).get("clients") or 0.0 for line in run.rounds)
    return _ratio(spent, run.total("replies"))


COSTS = (
    Cost("bytes up per answer", up_per_answer, words.size, "up_each"),
    Cost("bytes down per order", down_per_order, words.size, "down_each"),
    Cost("bytes up in all", lambda r: r.total("bytes_up"), words.size, "bytes_up"),
    Cost("bytes down in all", lambda r: r.total("bytes_down"), words.size, "bytes_down"),
    Cost("forward-equivalents", lambda r: r.total("forwards"), words.short, "forwards"),
    Cost("memory above weights", lambda r: r.memory("peak_above_weights"), words.size, "memory"),
    Cost("resident memory", lambda r: r.memory("rss"), words.size),
    Cost("seconds of a client's round", _client_seconds, words.duration, "seconds_each"),
    Cost("wall time of the rounds", lambda r: r.seconds, words.duration),
    Cost("wall time per round", lambda r: _ratio(r.seconds or 0.0, r.done), words.duration),
)


def cost_rows(runs: Sequence[Run]) -> Rows:
    """What the runs took, and what became of their answers."""
    start = [("before round 1 (the solved head)", _started)] if any(r.start for r in runs) else []
    after = [("answers lost", _lost), ("clients asked at least once", _asked)]
    counted = [*after, ("local steps skipped", _skipped)]
    return [
        *((name, *map(text, runs)) for name, text in [("rounds", progress), *start]),
        *((c.title, *(c.text(c.of(run)) for run in runs)) for c in COSTS),
        *((name, *map(text, runs)) for name, text in counted),
    ]


def progress(run: Run) -> str:
    if run.finished:
        return f"{run.done:,}"
    planned = "?" if run.planned is None else f"{run.planned:,}"
    return f"{run.done:,} of {planned}, not finished"


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


def compare(tables: Iterable[Mapping[str, Any]], without: Sequence[str] = ()) -> Rows:
    """One row per key of any of these flat tables, in the order in which keys first appear."""
    tables = list(tables)
    names = [n for n in dict.fromkeys(n for table in tables for n in table) if n not in without]
    return [(name, *(words.setting(table.get(name)) for table in tables)) for name in names]


def folded(rows: Rows, names: Sequence[str], what: str) -> list[Table]:
    """What differs between runs; what they share, and all of one run, on request."""
    differs = [row for row in rows if len(set(row[1:])) > 1]
    same = [row[:2] for row in rows if len(set(row[1:])) <= 1]
    shared = f"{len(same)} {what}" + (" that all runs share" if len(names) > 1 else "")
    tables = [Table(("", "value"), same, folded=shared)]
    return [Table(("", *names), differs), *tables] if differs else tables


def settings_rows(runs: Sequence[Run]) -> Rows:
    """The configurations, without the name and place that every run has of its own."""
    return compare([flat(run.config) for run in runs], ("name", "out"))


def environment_rows(runs: Sequence[Run]) -> Rows:
    """Versions, machine, model and data of each run."""
    tables = []
    for run in runs:
        model = dict(run.environment.get("model") or {})
        if isinstance(model.get("units"), list):
            model["units"] = len(model["units"])
        for key in ("parameters", "trainable"):
            model[key] = words.whole(finite(model.get(key)))
        model["weights"] = words.size(finite(model.pop("weights_bytes", None)))
        apart = ("choices", "protects", "measures")
        about = {k: v for k, v in run.environment.items() if k not in apart}
        tables.append(flat({**about, "model": model}))
    return compare(tables)


def loss_rows(runs: Sequence[Run]) -> Rows:
    """Lost answers by reason, with the simulated probability where there is one."""

    def text(run: Run, reason: str) -> str:
        share = (_ratio(run.lost.get(reason, 0), run.orders) or 0.0) * 100
        simulated = finite((run.config.get("faults") or {}).get(reason)) or 0.0
        more = f"; {100 * simulated:.3g} % simulated" if simulated else ""
        return f"{run.lost.get(reason, 0):,} ({share:.1f} % of orders{more})"

    reasons = dict.fromkeys(reason for run in runs for reason in run.lost)
    return [(reason, *(text(run, reason) for run in runs)) for reason in reasons]


def partition_rows(partition: Json) -> Rows:
    """Who holds what, in a few numbers."""
    sizes = [int(n) for n in partition.get("sizes") or []]
    clients = int(partition.get("clients") or len(sizes))
    shown = f" (the first {len(sizes):,} are shown)" if len(sizes) < clients else ""
    rows = [("kind", words.setting(partition.get("kind"))), ("clients", f"{clients:,}{shown}")]
    if sizes:
        spread = f"{min(sizes):,} / {median(sizes):,.4g} / {max(sizes):,}"
        rows.append(("training examples", f"{sum(sizes):,}"))
        rows.append(("smallest / median / largest client", spread))
    held = [counts for counts in partition.get("counts") or [] if sum(counts)]
    if label_names(partition) and held:
        kinds = median(sum(n > 0 for n in counts) for counts in held)
        share = median(max(counts) / sum(counts) for counts in held)
        rows.append(("labels of a median client", f"{kinds:g} of {len(partition['labels'])}"))
        rows.append(("share of its most frequent label", f"{100 * share:.0f} %"))
    return list(rows)


def partition_table(partition: Json) -> Table:
    """Some clients from the largest to the smallest, with a bar and their most frequent labels."""
    sizes = [int(n) for n in partition.get("sizes") or []]
    order = sorted(range(len(sizes)), key=lambda client: -sizes[client])
    picked = order
    if len(order) > MOST_CLIENTS:
        last = MOST_CLIENTS - 1
        picked = [order[round(i * (len(order) - 1) / last)] for i in range(MOST_CLIENTS)]
    largest = max([1, *sizes])
    rows = [
        (f"{c}", f"{sizes[c]:,}", "█" * round(BAR * sizes[c] / largest), top_labels(partition, c))
        for c in picked
    ]
    facts = "\n".join(f"{name}: {value}" for name, value in partition_rows(partition))
    shown = f"{len(picked)} of {len(order):,} clients, from the largest to the smallest"
    heads = ("client", "examples", "", "most frequent labels" if label_names(partition) else "")
    return Table(heads, rows, f"{facts}\n{shown}")


def top_labels(partition: Json, client: int, most: int = 3) -> str:
    """The most frequent labels of a client with their numbers: "World 12, Sports 3"."""
    names, counts = label_names(partition), (partition.get("counts") or [])[client : client + 1]
    if not names or not counts:
        return ""
    top = sorted((i for i, n in enumerate(counts[0]) if n), key=lambda i: -counts[0][i])[:most]
    return ", ".join(f"{words.cut(names[i])} {counts[0][i]:,}" for i in top)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _quality(run: Run, value: float | None) -> str:
    return words.quality(run.metric, value, unit=False)


def _of(metric: Metric, line: Json | None) -> str:
    return words.quality(metric, metric.of(line), unit=False)


def _started(run: Run) -> str:
    if run.start is None:
        return words.ABSENT
    up, down = (words.size(finite(run.start.get(key))) for key in ("bytes_up", "bytes_down"))
    return f"{up} up, {down} down, {words.duration(finite(run.start.get('seconds')))}"


def _steps(run: Run) -> str:
    """What held-out rows have decided at the end (``run/guard_decisions.py``)."""
    steps = (run.start or {}).get("steps")
    if not isinstance(steps, dict):
        return words.ABSENT
    said = "stay" if steps.get("kept") else "left out"
    quality = steps.get("quality")
    if not (isinstance(quality, list) and len(quality) == 2):
        return said
    one, other = (words.percent(finite(x)) for x in quality)
    rows = words.whole(finite(steps.get("rows")))
    return f"{said}: {other} with them on {rows} held-out rows, {one} without"


def _lost(run: Run) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in run.lost.items())
    return f"{sum(run.lost.values()):,} of {run.orders:,}{f' ({reasons})' if reasons else ''}"


def _asked(run: Run) -> str:
    asked = {client for line in run.rounds for client in line.get("cohort") or ()}
    return f"{len(asked):,} of {words.whole(finite(run.partition.get('clients')))}"


def _skipped(run: Run) -> str:
    steps, skipped = run.total("steps"), words.whole(run.total("skipped"))
    return f"{skipped} of {steps:,.0f}" if steps else skipped
