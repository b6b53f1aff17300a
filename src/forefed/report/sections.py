"""The sections of a page about runs: a question that a person asks, and what the records answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from forefed.core.types import Json
from forefed.report import facts, pictures, plots, words
from forefed.report.content import Section, Table
from forefed.report.facts import FOLDED
from forefed.report.plots import AXES, ROUNDS, Axis, Curve
from forefed.report.read import Run, finite

MOST_NAMED = 8
"""Classes that a sentence names."""


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
        return Section("How far is it off?", (), [pictures.scatter(pairs)])
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
        figure = pictures.confusion(matrix, names)
        texts.append(_mistakes(matrix, names))
    else:
        most = sorted(zip(names, classes, strict=True), key=lambda each: -each[1]["examples"])
        found = plots.bars(
            "recall",
            "What is found",
            "share of each label's texts that are found",
            [(name, each["recall"], None) for name, each in most[: pictures.NAMED]],
            plots.percent,
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
    figure = pictures.certainty(
        "calibration",
        "share that is right by stated certainty; thin: as it should be",
        {"this run": bins},
    )
    rows = [(plots.percent(s), plots.percent(r), f"{n:,.0f}") for n, s, r in bins]
    shown = [figure and replace(figure, table=None)]
    return Section(title, [text + gap], shown, [Table(("certainty", "right", "cases"), rows)])


def cost(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """Bytes, passes, memory, time, and answers that were lost."""
    figures = [pictures.seconds(runs, names), pictures.losses(runs, names)]
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
        plots.percent,
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
            [pictures.partition(there, f"partition{number}")],
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
