"""How a run serves its clients: how quality spreads over them, and each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import facts, pictures, plots, words
from forefed.report.content import Section, Table
from forefed.report.facts import FOLDED
from forefed.report.plots import ROUNDS, Curve
from forefed.report.read import Run, finite

SPREAD = {"mean": "client_mean", "worst tenth": "client_decile", "worst": "client_worst"}
"""How quality spreads over clients; a tenth of them are at the second or worse."""
MODELS = {"clients": "the common model", "personal": "each with its own"}
"""Evaluations on clients' own rows, by the model that was tested."""


def served(run: Run) -> Section:
    """How quality spreads over the clients, and each of them."""
    title, metric = "Whom does it serve badly?", run.metric
    if metric is None:
        return Section(title)
    last = spreads(run)
    each = (run.kept.get("clients") or {}).get("clients") or []
    texts, curves, named = [], [], []
    for split, line in last.items():
        found = {name: Metric(key, key).of(line) for name, key in SPREAD.items()}
        mean, decile, worst = (words.quality(metric, value) for value in found.values())
        who = words.plural(int(line["clients"]), "client")
        own = "" if split == "clients" else ", each with its own model"
        texts.append(
            f"Of {who} tested on their own texts{own}, the mean is {mean}; a tenth are at {decile} "
            f"or worse, and the worst is at {worst}."
        )
        named = [(f"{name} {words.quality(metric, x, unit=False)}", x)
                 for name, x in found.items() if x is not None]  # fmt: skip
        for name, key in SPREAD.items():
            lines = [e for e in run.evaluations if e.get("split") == split]
            more = "" if len(last) == 1 else f", {MODELS[split]}"
            curves.append(Curve.of(name + more, lines, Metric(key, key).of))
    values = {
        model: [v for one in each if (v := finite(one.get(split))) is not None]
        for split, model in MODELS.items()
        if split in last
    }
    if not last:
        texts.append(
            "Not measured: set evaluate.clients to the number of clients to be tested on rows of "
            "their own."
        )
    picture = pictures.clients(metric, values, named)
    spread = plots.lines(
        "spread",
        "Clients over the rounds",
        f"{words.axis(metric)} on clients' own test texts",
        [curve for curve in curves if len(curve.xs) > 1],
        ROUNDS,
        plots.quality_axis(metric),
    )
    table = _client_table(run, metric, {one["client"]: one for one in each}, list(last))
    later = [spread] if picture else []
    return Section(title, texts, [picture or spread], [table] if table.rows else [], later)


def spreads(run: Run) -> dict[str, Json]:
    """The last evaluations that say how quality spreads over clients, by the model tested."""
    found = {split: run.last(split) for split in MODELS}
    return {s: line for s, line in found.items() if line and SPREAD["mean"] in line}


def _client_table(
    run: Run, metric: Metric, each: Mapping[int, Json], splits: Sequence[str]
) -> Table:
    """A row per client, the worst served first: rows, labels, how often it was asked, quality."""
    sizes = run.partition.get("sizes") or []
    asked = dict.fromkeys(range(len(sizes)), 0)
    for client in (c for line in run.rounds for c in line.get("cohort") or ()):
        asked[client] = asked.get(client, 0) + 1

    def worst(client: int) -> tuple[bool, float]:
        value = finite(each.get(client, {}).get(splits[-1])) if splits else None
        return value is None, metric.sign * (value or 0.0)

    rows = [
        (
            f"{client}",
            f"{sizes[client]:,}" if client < len(sizes) else words.ABSENT,
            facts.top_labels(run.partition, client, 2) or words.ABSENT,
            f"{asked.get(client, 0):,}",
            words.whole(each.get(client, {}).get("n")),
            *(words.quality(metric, finite(each.get(client, {}).get(s)), False) for s in splits),
        )
        for client in sorted({*asked, *each}, key=worst)
    ]
    titles = [metric.title + (f", {MODELS[s]}" if len(splits) > 1 else "") for s in splits]
    heads = ("client", "training rows", "most frequent labels", "asked", "test rows", *titles)
    kept = [i for i in range(len(heads)) if i < 2 or any(row[i] != words.ABSENT for row in rows)]
    folded = f"{len(rows):,} clients one by one" if len(rows) > FOLDED else ""
    cut = [[row[i] for i in kept] for row in rows]
    return Table([heads[i] for i in kept], cut, folded=folded)


def served_together(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """How quality spreads over the clients of several runs."""
    rows = [
        (name + ("" if split == "clients" else f", {MODELS[split]}"), *shown)
        for run, name in zip(runs, names, strict=True)
        for split, shown in spread_rows(run).items()
    ]
    table = Table(("on clients' own rows", "clients", *SPREAD), rows)
    return Section("Whom do they serve badly?", (), (), [table] if rows else ())


def spread_rows(run: Run) -> dict[str, list[str]]:
    """By the model that was tested: how many clients, and their quality as ``SPREAD`` says it."""
    return {
        split: [
            words.whole(finite(line.get("clients"))),
            *(words.quality(run.metric, finite(line.get(k)), False) for k in SPREAD.values()),
        ]
        for split, line in spreads(run).items()
    }
