"""The sections of a page about runs: a question that a person asks, and what the records answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.report import facts, plots, words
from forefed.report.content import Section, Table
from forefed.report.plots import AXES, ROUNDS, Axis, Curve
from forefed.report.read import Run, finite

MOST_NAMED = 8
"""Classes that a sentence names."""
FOLDED = 12
"""Rows from which a table is folded away."""
SPREAD = {"mean": "client_mean", "worst tenth": "client_decile", "worst": "client_worst"}
"""How quality spreads over clients; a tenth of them are at the second or worse."""
MODELS = {"clients": "the common model", "personal": "each with its own"}
"""Evaluations on clients' own rows, by the model that was tested."""


def learnt(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """Quality over the rounds, beside what costs less."""
    metric = next((run.metric for run in runs if run.metric), None)
    title = "Did it learn?" if len(runs) == 1 else "Which learnt?"
    if metric is None:
        return Section(title, ["Nothing to draw yet: no evaluation is recorded."])
    curves = [_curve(run, name, "round") for run, name in zip(runs, names, strict=True)]
    cheaper: dict[str, float] = {}
    for run in runs:  # several runs: what costs nothing; of one run everything that costs less
        known = run.baselines if len(runs) == 1 else {metric.chance: run.majority}
        cheaper |= {
            f"{words.cut(name, 34)} {words.quality(metric, x, unit=False)}": x
            for name, x in known.items()
            if x is not None
        }
    figure = plots.lines(
        "quality-round",
        "Quality over rounds",
        f"{metric.title} of the global model on the test set, with 95 % intervals; dashed: what "
        "costs less",
        curves,
        ROUNDS,
        plots.quality_axis(metric),
        list(cheaper.items()),
        wide=True,
    )
    heads = ("on the test set", "value") if len(runs) == 1 else ("on the test set", *names)
    return Section(title, (), [figure], [Table(heads, facts.quality_rows(runs))])


def _curve(run: Run, name: str, against: str) -> Curve:
    """Points of one run: cost (or round) and quality, where both are known."""
    cost = {e["round"]: float(e["round"]) for e in run.tests}
    if against != "round":
        cost = run.spent("bytes" if against == "bytes" else "forwards")
    known = [e for e in run.tests if e["round"] in cost and run.quality(e) is not None]
    ys = [value for e in known if (value := run.quality(e)) is not None]
    ends = [run.interval(e) for e in known] if against == "round" else ()
    return Curve(name, [cost[e["round"]] for e in known], ys, ends)


def confused(run: Run) -> Section:
    """Which classes are taken for which, or how far numbers are off."""
    title, pairs = "What does it confuse?", run.details.get("scatter")
    if pairs:
        return Section("How far is it off?", (), [plots.scatter(pairs)])
    classes = run.details.get("by_class") or []
    names = [str(name) for name in run.partition.get("labels") or []]
    if not classes or len(names) != len(classes):
        return Section(title)
    rows = [
        (
            words.cut(name, 40),
            f"{each['examples']:,}",
            *(words.percent(each[key]) for key in ("recall", "precision", "f1")),
        )
        for name, each in zip(names, classes, strict=True)
    ]
    heads = ("class", "test texts", "recall", "precision", "F1")
    folded = f"{len(rows)} classes one by one" if len(rows) > FOLDED else ""
    texts, matrix = [], run.details.get("confusion")
    if matrix:
        figure = plots.confusion(matrix, names)
        texts.append(_mistakes(matrix, names))
    else:
        most = sorted(zip(names, classes, strict=True), key=lambda each: -each[1]["examples"])
        found = plots.bars(
            "recall",
            "What is found",
            "share of each label's texts that are found",
            [(name, each["recall"], None) for name, each in most[: plots.NAMED]],
            lambda share: f"{100 * share:.0f} %",
        )
        assert found
        figure = found
    missed = [n for n, c in zip(names, classes, strict=True) if c["examples"] and not c["recall"]]
    if missed:
        shown = words.listing([words.cut(name, 40) for name in missed[:MOST_NAMED]])
        texts.append(f"Never found: {shown}{' and others' if missed[MOST_NAMED:] else ''}.")
    return Section(title, texts, [figure], [Table(heads, rows, folded=folded)])


def _mistakes(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The most frequent mistakes in a sentence."""
    cells = [
        (count, names[true], names[said])
        for true, row in enumerate(matrix)
        for said, count in enumerate(row)
        if true != said and count
    ]
    if not cells:
        return "No test text is put into a wrong class."
    worst = sorted(cells, key=lambda item: -item[0])[:3]
    said = [f"{words.cut(a, 40)} for {words.cut(b, 40)} ({n:,})" for n, a, b in worst]
    return f"Most often taken for another: {words.listing(said)}."


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
    picture = plots.clients(metric, values, named)
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


def believed(run: Run) -> Section:
    """Stated certainty against how often it is right."""
    title, bins = "May its probabilities be believed?", run.details.get("calibration")
    if not bins:
        return Section(title)
    total = sum(n for n, *_ in bins)
    surely = sum(n * confidence for n, confidence, _ in bins) / total
    right = sum(n * share for n, _, share in bins) / total
    text = f"On average it is {100 * surely:.0f} % sure, and right in {100 * right:.0f} % of cases"
    more = "surer than it should be" if surely > right else "less sure than it could be"
    gap = "." if abs(surely - right) < 0.05 else f": it is {more}."
    figure, table = plots.calibration(bins)
    return Section(title, [text + gap], [figure], [table])


def cost(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """Bytes, passes, memory, time, and answers that were lost."""
    figures = [plots.seconds(runs, names), plots.losses(runs, names)]
    metric = next((run.metric for run in runs if run.metric), None)
    for against, title in (("bytes", "bytes"), ("forwards", "compute")) if metric else ():
        assert metric
        figures.append(
            plots.lines(
                f"quality-{against}",
                f"Quality for its {title}",
                f"{metric.title} by {AXES[against].label}",
                [_curve(run, name, against) for run, name in zip(runs, names, strict=True)],
                AXES[against],
                plots.quality_axis(metric),
            )
        )
    heads = ("", "in this run") if len(runs) == 1 else ("", *names)
    tables = [Table(heads, facts.cost_rows(runs))]
    lost, texts = facts.loss_rows(runs), []
    if lost:
        tables.append(Table(heads, lost, "Lost answers"))
    silent = sum(not line.get("replies") for run in runs for line in run.rounds)
    if silent:
        texts.append(
            f"In {words.plural(silent, 'round')} nobody answered; the model stayed as it was."
        )
    if len(runs) == 1:
        return Section("What did it cost?", texts, figures[:1], tables, figures[1:])
    return Section("What did they cost?", texts, figures, tables)


def protected(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """What stands between the clients' rows and others, and what was let out all the same."""
    one, texts, figures, tables = len(runs) == 1, [], [], []
    rows: list[tuple[str, ...]] = []
    for run, name in zip(runs, names, strict=True):
        found = [(each["what"], each["text"]) for each in run.environment.get("protects") or ()]
        found += [("privacy ledger", f"{each.get('text')}.") for each in run.privacy]
        attack = run.environment.get("attack")
        found += [("attack", attack["told"])] if isinstance(attack, dict) else []
        rows += found if one else [(name, *each) for each in found]
    audited = runs[0].kept.get("audit") if one else None
    if rows:
        heads = ("what", "what it does") if one else ("run", "what", "what it does")
        tables.append(Table(heads, rows))
    else:
        texts.append(
            "Nothing beside the rows' staying where they are: no secure sum, no noise, no robust "
            "rule." + ("" if audited else " 'forefed audit' measures what a server can learn so.")
        )
    spent = [Curve.of(n, run.rounds, epsilon_of) for run, n in zip(runs, names, strict=True)]
    epsilon = Axis("epsilon so far", "{:.3g}".format)
    caption = "the privacy that was spent up to each round; lower protects better"
    figures.append(plots.lines("epsilon", "Privacy spent", caption, spent, ROUNDS, epsilon))
    if audited:
        told = [str(audited["reveals"]), *audited["sentences"]]
        texts += [*map(words.sentence, told), f"What helps: {'; '.join(audited['remedy'])}."]
        figures.append(_attacks(audited))
        tables.append(_attack_table(audited))
    return Section("What protects the clients?", texts, figures, tables)


def epsilon_of(line: Json | None) -> float | None:
    """The largest epsilon that a round or a summary states: what one unit lost at most."""
    known = [finite(each.get("epsilon")) for each in (line or {}).get("privacy") or ()]
    return max((value for value in known if value is not None), default=None)


def _attacks(audited: Json) -> Any:
    found = [f for f in audited["findings"] if f["measure"] == "share"]
    return plots.bars(
        "attacks",
        "Attacks of a curious server",
        "how often each succeeds; orange: a guess that reads no message",
        [(f"{f['attack']} ({words.plural(f['client']['rows'], 'row')})", f["value"],
          (f["low"], f["high"])) for f in found],
        lambda share: f"{100 * share:.0f} %",
        [f["chance"] for f in found],
        "a guess",
        wide=True,
    )  # fmt: skip


def _attack_table(audited: Json) -> Table:
    rows, bold = [], set()
    for number, one in enumerate(audited["findings"]):
        client, share = one["client"], one["measure"] == "share"
        steps = words.plural(client["steps"], "step")
        how = f"batch {client['batch']}, {steps}" if client["steps"] else "before round 1"
        row = (
            f"{one['step']} {one['attack']}",
            f"{words.plural(client['rows'], 'row')}, {how}",
            f"{one['value']:.0%}" if share else f"cosine {one['value']:.2f}",
            f"{one['chance']:.0%}" if share else f"{one['chance']:.2f}",
            f"{one['trials']}",
        )
        rows.append(row)
        bold |= {(number, 2)} if one["leaks"] else set()
    heads = ("attack", "client", "success", "a guess", "messages")
    return Table(heads, rows, folded=f"{len(rows)} attacks one by one", bold=frozenset(bold))


def held(runs: Sequence[Run], names: Sequence[str]) -> list[Section]:
    """Who holds what, once per different partition."""
    groups: list[tuple[Json, list[str]]] = []
    for run, name in zip(runs, names, strict=True):
        same = next((members for there, members in groups if there == run.partition), None)
        if same is None:
            groups.append((run.partition, [name]))
        else:
            same.append(name)
    return [
        Section(
            "Who holds what?" + (f" ({', '.join(members)})" if len(groups) > 1 else ""),
            (),
            [plots.partition(there, f"partition{number}")],
            [Table(("", "value"), facts.partition_rows(there))],
        )
        for number, (there, members) in enumerate(groups)
    ]


def settings(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """What was chosen, in words; every setting; machine and versions."""
    tables = []
    chosen = runs[0].environment.get("choices") if len(runs) == 1 else None
    if chosen:
        rows = [(c["slot"], c["question"], c["kind"], c["about"]) for c in chosen]
        heads = ("slot", "question", "chosen", "what that does")
        tables.append(Table(heads, rows, folded="What was chosen, in words"))
    tables += facts.folded(facts.settings_rows(runs), names, "settings")
    tables += facts.folded(facts.environment_rows(runs), names, "facts of data, model and machine")
    return Section("Settings and machine", (), (), tables)
