"""Reading the record of a run, finished or not.

A run may still be going on, or may have been killed: rounds can be missing at the end, the last
line of a file can be torn, and a loss can be null or NaN. All of that is read as it is; only a
folder that is no run, or a file damaged in another way, is an error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

from forefed.core.errors import UserError
from forefed.core.files import read_table, read_table_lines
from forefed.core.intervals import Ends, wilson
from forefed.core.metrics import Measures, Metric, of_old_records
from forefed.core.shortfalls import HEAD, UNTRAINED, shortfalls
from forefed.core.types import LOSS_REASONS, Json

Cost = Literal["bytes", "forwards"]
KEPT = ("summary", "start", "details", "clients", "audit", "baselines")
"""Tables (NAME.json) that not every run has."""
AGAIN = "'forefed run --resume' writes the rounds after the checkpoint again, otherwise restore it"


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it. ``torn`` counts the unfinished last lines left out."""

    folder: Path
    config: Json
    environment: Json
    partition: Json
    rounds: tuple[Json, ...]
    evaluations: tuple[Json, ...]
    kept: Mapping[str, Json] = field(default_factory=dict)
    """Those of ``KEPT`` that there are."""
    torn: int = 0

    @property
    def summary(self) -> Json | None:
        return self.kept.get("summary")

    @property
    def start(self) -> Json | None:
        """How the head was solved before the first round, so that the first evaluation is of it."""
        return self.kept.get("start")

    @property
    def details(self) -> Json:
        """What is no single number of the last evaluation; empty where it is not kept."""
        found, final = self.kept.get("details") or {}, self.final or {}
        return found if found.get("round") == final.get("round", -1) else {}

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.folder.name)

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def done(self) -> int:
        """Recorded rounds."""
        return len(self.rounds)

    @property
    def planned(self) -> int | None:
        rounds = finite(self.config.get("rounds"))
        return None if rounds is None else int(rounds)

    @cached_property
    def measures(self) -> Measures | None:
        """What an evaluation measures; None before the first one."""
        if not self.tests:
            return None
        return Measures.of_json(self.environment.get("measures")) or of_old_records(self.tests)

    @property
    def metric(self) -> Metric | None:
        """The metric that decides; None before the first evaluation."""
        return self.measures.decides if self.measures else None

    @property
    def tests(self) -> tuple[Json, ...]:
        """Evaluations of the global model on the global test set, in order."""
        return tuple(line for line in self.evaluations if line.get("split") == "test")

    @property
    def final(self) -> Json | None:
        """The last evaluation on the test set."""
        return self.tests[-1] if self.tests else None

    @property
    def best(self) -> Json | None:
        """The best evaluation on the test set, the earliest of equals."""
        best = None
        for line in self.tests:
            if self.metric and (best is None or self.metric.better(line, best)):
                best = line
        return None if self.quality(best) is None else best

    def quality(self, line: Json | None) -> float | None:
        """The metric that decides, of one evaluation; None where it is no number."""
        return self.metric.of(line) if self.metric else None

    def interval(self, line: Json | None) -> Ends | None:
        """95 % interval of the quality, for another draw of test examples; None where unknown."""
        value, n = self.quality(line), finite((line or {}).get("n"))
        if line is None or value is None or self.metric is None:
            return None
        low, high = finite(line.get("low")), finite(line.get("high"))
        if low is not None and high is not None:
            return low, high
        return wilson(value * n, n) if self.metric.scale == "share" and n else None

    @property
    def untrained(self) -> float | None:
        """The quality before the first round."""
        first = self.tests[0] if self.tests and self.tests[0]["round"] == 0 else None
        return self.quality(first)

    @property
    def before(self) -> str:
        """What the model is called before the first round."""
        return UNTRAINED if self.start is None else HEAD

    @property
    def majority(self) -> float | None:
        """Quality of the answer that costs nothing (``Metric.chance``), where there is one."""
        return finite(self.environment.get("majority"))

    @cached_property
    def _cheaper(self) -> dict[str, float]:
        """By its name in the record, what costs less: ``baselines.json`` has what was measured
        beside the run."""
        before = {"majority": self.environment.get("majority"), self.before: self.untrained}
        beside = self.kept.get("baselines", {}).get("lines", ())
        measured = {line["name"]: self.metric.of(line) for line in beside if self.metric}
        found = {**before, **((self.summary or {}).get("baseline") or {}), **measured}
        return {name: x for name, value in found.items() if (x := finite(value)) is not None}

    @property
    def baselines(self) -> dict[str, float]:
        """What costs less, with its quality: the answer that costs nothing, the model before
        training, and whatever else was measured."""
        names = self.measures.baseline_name if self.measures else str
        return {names(name): value for name, value in self._cheaper.items()}

    @property
    def shortfalls(self) -> list[str]:
        """What a finished run should have reached and did not."""
        if self.summary is None or self.measures is None or self.final is None:
            return []
        return shortfalls(self.measures, self.final, self.best, self._cheaper)

    def total(self, key: str, started: bool = True) -> float:
        """The sum of one number over all rounds, such as ``bytes_up`` or ``forwards``, with what
        the start took before them (``started``)."""
        lines = [*self.rounds, *([self.start] if self.start and started else [])]
        return sum(finite(line.get(key)) or 0.0 for line in lines)

    @property
    def seconds(self) -> float:
        """Wall time of all rounds, without loading."""
        return sum(finite((line.get("seconds") or {}).get("total")) or 0.0 for line in self.rounds)

    def memory(self, key: str) -> float | None:
        """The largest ``peak_above_weights`` or ``rss`` of any round, in bytes."""
        values = (finite((line.get("memory") or {}).get(key)) for line in self.rounds)
        return max((value for value in values if value is not None), default=None)

    @property
    def orders(self) -> int:
        """Orders sent: clients asked, over all rounds."""
        return sum(len(line.get("cohort") or ()) for line in self.rounds)

    @property
    def lost(self) -> dict[str, int]:
        """Lost answers by reason, the known reasons first."""
        counts: Counter[str] = Counter()
        for line in self.rounds:
            counts.update(line.get("lost") or {})
        order = [*LOSS_REASONS, *sorted(set(counts) - set(LOSS_REASONS))]
        return {reason: counts[reason] for reason in order if counts[reason]}

    def spent(self, cost: Cost) -> dict[int, float]:
        """Cost up to and with each round, the start's at round 0: bytes both ways, or
        forward-equivalents."""
        keys = ("bytes_up", "bytes_down") if cost == "bytes" else ("forwards",)
        lines = [{"round": 0, **(self.start or {})}, *self.rounds]
        each = (sum(finite(line.get(key)) or 0.0 for key in keys) for line in lines)
        return dict(zip((line["round"] for line in lines), accumulate(each), strict=True))

    def last(self, split: str) -> Json | None:
        """The last evaluation of a kind."""
        return next((e for e in reversed(self.evaluations) if e.get("split") == split), None)

    @property
    def privacy(self) -> list[Json]:
        """Statements of what was let out of private rows, in all."""
        last = self.rounds[-1] if self.rounds else {}
        told = (self.summary or last).get("privacy") or []
        return [each for each in told if isinstance(each, dict)]


def read_run(folder: Path) -> Run:
    """The run in ``folder``.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged beyond a torn last line.
    """
    folder = Path(folder)
    heads = ("config.json", "environment.json", "partition.json")
    missing = [name for name in heads if not (folder / name).is_file()]
    if missing:
        raise UserError(_not_a_run(folder, missing))
    config, environment, partition = (read_table(folder / name) for name in heads)
    rounds, torn_rounds = _read_lines(folder / "rounds.jsonl")
    evaluations, torn_evaluations = _read_lines(folder / "evaluations.jsonl", "split")
    files = {name: folder / f"{name}.json" for name in KEPT}
    kept = {name: read_table(file) for name, file in files.items() if file.exists()}
    _check_summary(folder / "summary.json", kept.get("summary"))
    torn = torn_rounds + torn_evaluations
    return Run(folder, config, environment, partition, rounds, evaluations, kept, torn)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run that no other has: its name, else its folder, else with a number."""
    names = Counter(run.name for run in runs)
    labels: list[str] = []
    for run in runs:
        wanted = run.name if names[run.name] == 1 else str(run.folder)
        twins = labels.count(wanted)
        labels.append(f"{wanted} ({twins + 1})" if twins else wanted)
    return labels


def label_names(partition: Json) -> list[str]:
    """The labels by which clients' examples are counted; none where they are not."""
    return [str(name) for name in partition.get("labels") or []] if partition.get("counts") else []


def finite(value: object) -> float | None:
    """The number, or None for null, NaN, infinities and everything that is not a number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]


def _not_a_run(folder: Path, missing: list[str]) -> str:
    if not folder.is_dir():
        return f"{folder}: there is no such folder; 'forefed run' keeps its record in runs/NAME"
    message = f"{folder}: not a run ({', '.join(missing)} missing)"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside:
        shown = ", ".join(str(folder / name) for name in inside[:8])
        return f"{message}; runs found inside: {shown}{', ...' if len(inside) > 8 else ''}"
    return f"{message}; give the folder that 'forefed run' made, for example runs/NAME"


def _check_summary(path: Path, found: Json | None) -> None:
    if found is not None and not isinstance(found.get("status", ""), str):
        raise UserError(f"{path}: damaged (its status is no word); restore it from a copy")


def _read_lines(path: Path, *words: str) -> tuple[tuple[Json, ...], int]:
    """The lines of a record file, and how many torn ones (0 or 1) were left out at its end.

    Args:
        words: what every line names in a word.
    """

    def fits(line: Json) -> bool:
        return isinstance(line.get("round"), int) and all(
            isinstance(line.get(word), str) for word in words
        )

    lines, torn = read_table_lines(path, AGAIN, fits)
    return tuple(lines), int(torn)
