"""Live progress in the terminal: clients of the round, rounds, loss, accuracy, bytes."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from forefed.core.sizes import format_bytes
from forefed.core.terminal import column, printable, styled
from forefed.core.types import Json, Lost, Reply
from forefed.models.objectives import OBJECTIVES
from forefed.run.build import Federation
from forefed.run.card import against
from forefed.run.config import Config
from forefed.run.run import Result, Watcher


class Progress(Watcher):
    """A ``Watcher`` that draws; use as a context manager around ``run``."""

    def __init__(self, console: Console, config: Config):
        self.console = console
        self.config = config
        self.measures = OBJECTIVES[config.data.task.head].measures
        self.score = ""
        self.bytes = [0, 0]
        self.finished = False
        self.bars = Bars(
            column("{task.description}"),
            BarColumn(bar_width=24),
            column("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            column("{task.fields[facts]}"),
            console=console,
        )
        self.rounds = self.bars.add_task("rounds ", total=config.rounds, facts="")
        self.clients = self.bars.add_task("clients", total=config.cohort, facts="")

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def loading(self, what: str) -> None:
        self.bars.update(self.rounds, facts=f"{what} ...")

    def built(self, federation: Federation, start_round: int) -> None:
        config, task = federation.config, federation.task
        trainable = sum(unit.size for unit in task.units)
        facts = (
            f": {config.strategy.name}, {config.model.name} with {config.adapter.kind} "
            f"({trainable:,} trainable elements in {len(task.units)} units), "
            f"{federation.data.population.size:,} clients, {config.cohort} per round"
        )
        self.console.print(styled((config.name, "bold"), facts))
        if federation.rehearsed:
            self.note(
                "slopes rehearsed by backward passes (engine.rehearse): passes and memory are "
                "recorded as the engine's own, seconds are not"
            )
        for name, count in federation.data.counts.items():
            if count and name in ("empty", "truncated", "dropped", "out_of_reach"):
                what = name.replace("_", " ")
                self.note(f"texts {what}: {count}")
        if start_round:
            self.console.print(f"going on after round {start_round}")
        self.bars.update(self.rounds, completed=start_round, facts="")

    def outcome(self, outcome: Reply | Lost) -> None:
        if isinstance(outcome, Lost):
            self.bars.update(self.clients, facts=f"client {outcome.client} lost: {outcome.reason}")
        self.bars.advance(self.clients)

    def round(self, line: Json) -> None:
        self.bytes[0] += line["bytes_up"]
        self.bytes[1] += line["bytes_down"]
        loss = "loss -" if line["loss"] != line["loss"] else f"loss {line['loss']:.3f}"
        facts = (
            f"{loss}  {self.score}  up {format_bytes(self.bytes[0])}  "
            f"down {format_bytes(self.bytes[1])}"
        )
        self.bars.update(self.rounds, completed=line["round"], facts=facts)
        self.bars.reset(self.clients, facts="")
        if not self.console.is_terminal:
            self.console.print(f"round {line['round']}/{self.config.rounds}  {facts}")

    def evaluated(self, line: Json) -> None:
        if line["split"] == "test":
            self.score = self.measures.said(line)
            if not self.console.is_terminal:
                self.console.print(f"round {line['round']}: test {self.score}")

    def already_finished(self, summary: Json) -> None:
        self.finished = True
        self.bars.update(self.rounds, completed=summary["rounds"])

    def note(self, text: str) -> None:
        self.console.print(printable(text), style="dim")

    def closing(self, result: Result) -> None:
        """The last lines: result against its baselines, and where things are."""
        summary = result.summary
        if self.finished:
            self.console.print("This run is finished already; nothing was done.")
        final, baseline = summary["final"], summary["baseline"]
        said, terms = self.measures.said(final), self.measures.terms
        low, high = final.get("low"), final.get("high")
        ends = "" if low is None or high is None else f" (95 %: {low:.3f} to {high:.3f})"
        self.console.print(styled("\n", (said, "bold"), f" on {final['n']:,} test {terms}{ends}"))
        self.console.print(against(self.measures, baseline))
        self.console.print(
            f"adapter: {result.folder / 'adapter'}   record: {result.folder}", soft_wrap=True
        )
