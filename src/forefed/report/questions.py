"""What a person asks of a run, each with one picture and what stands behind it.

Is it good? Where is it wrong? Does it know when it is? Who is served badly? What does the server
learn?
"""

from __future__ import annotations

from dataclasses import dataclass

from forefed.core.types import Json
from forefed.report import pictures, words
from forefed.report.pages import Figure, figure
from forefed.report.read import Run, finite

MOST_NAMED = 8
"""Classes that a sentence names."""
MOST_CONFUSED = 3
"""Pairs of classes that a sentence names."""
FOLDED = 12
"""Rows from which a table is folded away."""


@dataclass(frozen=True)
class Question:
    """A section of the page; a long table is folded away."""

    title: str
    texts: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    what: str = "rows"

    @property
    def folded(self) -> bool:
        """Is the table shown on request only?"""
        return len(self.rows) > FOLDED


def questions(run: Run) -> list[Question]:
    """Those that the record answers."""
    found = [_good(run), _wrong(run), _numbers(run), _sure(run), _badly(run), _learnt(run)]
    return [question for question in found if question]


def _good(run: Run) -> Question | None:
    metric, value = run.metric, run.quality(run.final)
    if metric is None or value is None or run.measures is None:
        return None
    rows = [("this model", value), *run.baselines.items()]
    svg = pictures.baselines_plot(metric, rows, run.interval(run.final))
    caption = f"{words.axis(metric)} on the test set, and of what costs less"
    others = [(m.title, words.quality(m, m.of(run.final))) for m in run.measures.metrics]
    return Question(
        "Is it good?",
        (),
        tuple(figure("Against what costs less", caption, svg)),
        ("on the test set", "value"),
        tuple(others),
        "metrics",
    )


def _wrong(run: Run) -> Question | None:
    """Per class, and which classes are taken for which."""
    classes = run.details.get("by_class") or []
    names = [str(name) for name in run.partition.get("labels") or []]
    if not classes or len(names) != len(classes):
        return None
    rows = tuple(
        (
            words.cut(name, 40),
            f"{each['examples']:,}",
            *(_percent(each[key]) for key in ("recall", "precision", "f1")),
        )
        for name, each in zip(names, classes, strict=True)
    )
    confusion = run.details.get("confusion")
    pictured: list[Figure] = []
    texts: list[str] = []
    if confusion:
        svg = pictures.confusion_plot(confusion, names)
        caption = "rows: the true class; columns: what the model says; darker: more of the row"
        pictured = figure("What is taken for what", caption, svg, wide=len(names) > 12)
        texts = _confused(confusion, names)
    else:
        svg = pictures.recall_plot(classes, names)
        pictured = figure("What is found", "share of each label's texts that are found", svg)
    missed = [n for n, c in zip(names, classes, strict=True) if c["examples"] and not c["recall"]]
    if missed:
        shown = words.listing([words.cut(name, 40) for name in missed[:MOST_NAMED]])
        texts.append(f"Never found: {shown}{' and others' if missed[MOST_NAMED:] else ''}.")
    heads = ("class", "test texts", "recall", "precision", "F1")
    return Question("Where is it wrong?", tuple(texts), tuple(pictured), heads, rows, "classes")


def _confused(confusion: list[list[int]], names: list[str]) -> list[str]:
    """The most frequent mistakes in a sentence."""
    cells = [
        (count, names[true], names[said])
        for true, row in enumerate(confusion)
        for said, count in enumerate(row)
        if true != said and count
    ]
    if not cells:
        return ["No test text is put into a wrong class."]
    worst = sorted(cells, key=lambda item: -item[0])[:MOST_CONFUSED]
    said = [f"{words.cut(a, 40)} for {words.cut(b, 40)} ({n:,})" for n, a, b in worst]
    return [f"Most often taken for another: {words.listing(said)}."]


def _numbers(run: Run) -> Question | None:
    pairs = run.details.get("scatter")
    if not pairs:
        return None
    svg = pictures.scatter_plot(pairs)
    caption = "test texts by their true number; on the line the model is right"
    return Question("Where is it wrong?", (), tuple(figure("Said and true", caption, svg)))


def _sure(run: Run) -> Question | None:
    bins = run.details.get("calibration")
    if not bins:
        return None
    total = sum(n for n, *_ in bins)
    surely = sum(n * confidence for n, confidence, _ in bins) / total
    right = sum(n * share for n, _, share in bins) / total
    text = (
        f"On average the model is {100 * surely:.0f} % sure, and right in {100 * right:.0f} % of "
        "cases."
    )
    caption = "share that is right by stated certainty; dashed: as it should be; bars: how many"
    svg = pictures.calibration_plot(bins)
    drawn = tuple(figure("Stated and true certainty", caption, svg))
    return Question("Does it know when it is wrong?", (text,), drawn)


def _badly(run: Run) -> Question | None:
    """How quality spreads over the clients' own test texts."""
    keys = {"mean": "client_mean", "lowest tenth below": "client_decile", "worst": "client_worst"}
    lines = [line for line in run.evaluations if line.get("split") == "clients"]
    curves = {
        name: [(line["round"], v) for line in lines if (v := finite(line.get(key))) is not None]
        for name, key in keys.items()
    }
    if not any(curves.values()) or run.metric is None:
        return None
    last: Json = lines[-1]
    values = [finite(last.get(key)) for key in keys.values()]
    mean, decile, worst = (words.quality(run.metric, value) for value in values)
    text = (
        f"Of {words.plural(int(last['clients']), 'client')} tested on their own texts, the mean is "
        f"{mean}; a tenth are at {decile} or worse, and the worst is at {worst}."
    )
    svg = pictures.spread_plot(run.metric, curves)
    caption = f"{words.axis(run.metric)} on clients' own test texts"
    return Question("Who is served badly?", (text,), tuple(figure("Clients", caption, svg)))


def _percent(value: float | None) -> str:
    return words.ABSENT if value is None else f"{100 * value:.1f} %"


def _learnt(run: Run) -> Question | None:
    """Of a run that was audited: attacks on its client's messages."""
    audited = run.audited
    if audited is None:
        return None
    rows = []
    for one in audited["findings"]:
        client = one["client"]
        size = words.plural(client["rows"], "row")
        steps = words.plural(client["steps"], "step")
        how = f"batch {client['batch']}, {steps}" if client["steps"] else "before round 1"
        share = one["measure"] == "share"
        value = f"{one['value']:.0%}" if share else f"cosine {one['value']:.2f}"
        rows.append(
            (
                f"{one['step']} {one['attack']}",
                f"{size}, {how}",
                f"**{value}**" if one["leaks"] else value,
                f"{one['chance']:.0%}" if share else f"{one['chance']:.2f}",
                str(one["trials"]),
            )
        )
    texts = [audited["reveals"], *audited["sentences"], *audited["remedy"]]
    return Question(
        "What does the server learn?",
        tuple(text[0].upper() + text[1:] + "." for text in texts),
        (),
        ("attack", "client", "success", "a guess", "messages"),
        tuple(rows),
        "attacks",
    )
