"""Live progress in the terminal: clients of the round, rounds, loss, accuracy, bytes.

Where nobody looks (a pipe, a log file) it is one line per evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from forefed.config.config import Config
from forefed.core.errors import Stopped
from forefed.core.metrics import Measures
from forefed.core.shortfalls import shortfalls
from forefed.core.sizes import format_bytes
from forefed.core.terminal import bars, column, printable, styled
from forefed.core.types import Json, Lost, Reply
from forefed.models.objectives import OBJECTIVES
from forefed.run import record
from forefed.run.build import Federation
from forefed.run.callback import Callback
from forefed.run.card import against
from forefed.run.summary import FINISHED, Result


def own_models(measures: Measures, evaluations: Sequence[Json]) -> Iterator[str]:
    """The last scores of clients' own models, and of the common one on the same rows."""
    last = {e["split"]: e for e in evaluations}
    if "personal" not in last or not last["personal"].get("n"):
        return
    own, common = last["personal"], last.get("clients", {})
    decides = measures.decides
    yield (
        f"clients' own models on their own {own['n']:,} held-out rows: {measures.said(own)} "
        f"(common model: {measures.said(common)}); the worst of {own['clients']} clients: "
        f"{decides.said(own.get('client_worst'))}, better off {own.get('better', 0)}, worse off "
        f"{own.get('worse', 0)}"
    )


WORTH_SAYING = 0.005
"""Of ``lora_error``: less than a percent is said of no run."""


class Progress(Callback):
    """A ``Callback`` that draws; use as a context manager around ``run``.

    Ctrl-C within leaves it as ``Stopped``, which says what is kept and how to go on.
    """

    def __init__(self, console: Console, config: Config):
        self.console = console
        self.config = config
        self.measures = OBJECTIVES[config.data.task.head].measures
        self.score = ""
        self.evaluated_at = -1
        self.bytes = [0, 0]
        self.finished = False
        self.status: Status | None = None
        """Until the first round, which may never come: nothing of it stays on the screen."""
        self.bars = bars(console, column("{task.fields[facts]}"))
        self.rounds = self.bars.add_task("rounds ", total=config.rounds, facts="")
        self.clients = self.bars.add_task("clients", total=config.cohort, facts="")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clear()
        if self.bars.live.is_started:
            self.bars.stop()
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(self.kept()) from None

    def kept(self) -> str:
        """What a run that was stopped has left."""
        folder = self.config.folder
        if not (folder / "config.json").exists():
            return "stopped before the first round; nothing was written"
        done = len(record.read_lines(folder, record.ROUNDS))
        what = "no round is finished yet" if not done else f"finished rounds are kept: {done}"
        return f"stopped; {what}; go on with: forefed run {folder} --resume"

    def loading(self, what: str) -> None:
        if not self.console.is_terminal:
            self.note(f"{what} ...")  # each may take minutes
        elif not self.bars.live.is_started:
            self._clear()
            self.status = self.console.status(styled((f"{what} ...", "dim")))
            self.status.start()

    def starting(self, what: str, done: int, of: int) -> None:
        if self.console.is_terminal:
            if not self.bars.live.is_started:
                self._clear()
                self.bars.start()
            facts = what if done < of else ""
            self.bars.update(self.clients, completed=done, total=of, facts=facts)

    def built(self, federation: Federation, start_round: int) -> None:
        self._clear()
        config, task = federation.config, federation.task
        trainable = sum(unit.size for unit in task.units)
        facts = (
            f": {config.strategy.name}, {config.model.name} with {config.adapter.kind} "
            f"({trainable:,} trainable elements in {len(task.units)} units), "
            f"{federation.data.population.size:,} clients, {config.cohort} per round"
        )
        self.say(styled((config.name, "bold"), facts))
        if federation.emulated:
            self.note(
                "slopes emulated by backward passes (engine.emulate): passes and memory are "
                "recorded as the engine's own, seconds are not"
            )
        for name, count in federation.data.counts.items():
            if count and name in ("empty", "truncated", "dropped", "out_of_reach"):
                what = name.replace("_", " ")
                self.note(f"texts {what}: {count}")
        if start_round:
            self.say(f"going on after round {start_round}")
            for line in record.read_lines(config.folder, record.ROUNDS):
                self._count(line)
        if self.console.is_terminal:
            self.bars.update(self.rounds, completed=start_round, facts="")
            self.bars.reset(self.clients, total=config.cohort, facts="")
            self.bars.start()

    def outcome(self, outcome: Reply | Lost) -> None:
        if isinstance(outcome, Lost):
            self.bars.update(self.clients, facts=f"client {outcome.client} lost: {outcome.reason}")
        self.bars.advance(self.clients)

    def round(self, line: Json) -> None:
        self._count(line)
        loss = "loss -" if line["loss"] != line["loss"] else f"loss {line['loss']:.3f}"
        facts = (
            f"{loss}  {self.score}  up {format_bytes(self.bytes[0])}  "
            f"down {format_bytes(self.bytes[1])}"
        )
        self.bars.update(self.rounds, completed=line["round"], facts=facts)
        self.bars.reset(self.clients, facts="")
        if not self.console.is_terminal and self.evaluated_at == line["round"]:
            self.say(f"round {line['round']}/{self.config.rounds}  {facts}")

    def evaluated(self, line: Json) -> None:
        if line["split"] == "test":
            self.score, self.evaluated_at = self.measures.said(line), line["round"]
            if line["round"] == 0 and not self.console.is_terminal:
                before = record.before(self.config.folder)
                self.say(f"round 0/{self.config.rounds}  {self.score}  ({before})")

    def already_finished(self, summary: Json) -> None:
        self.finished = True

    def note(self, text: str) -> None:
        self.say(styled((printable(text), "dim")))

    def say(self, text: str | Text) -> None:
        """A line, folded only where somebody looks."""
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    def closing(self, result: Result) -> None:
        """The last lines: result against its baselines, and where things are."""
        summary = result.summary
        if self.finished:
            self.say("This run is finished already; nothing was done.")
        final, baseline = summary["final"], summary["baseline"]
        said, terms = self.measures.said(final), self.measures.terms
        low, high = final.get("low"), final.get("high")
        ends = "" if low is None or high is None else f" (95 %: {low:.3f} to {high:.3f})"
        self.say(styled("\n", (said, "bold"), f" on {final['n']:,} test {terms}{ends}"))
        self.say(against(self.measures, baseline))
        for text in shortfalls(self.measures, final, summary.get("best"), baseline):
            self.say(styled((printable(text), "yellow")))
        for text in own_models(self.measures, record.read_lines(result.folder, record.EVALUATIONS)):
            self.say(text)
        error = summary.get("lora_error", {}).get("mean", 0.0)
        if error >= WORTH_SAYING:
            self.say(
                f"averaging LoRA's factors missed the mean of their products by {error:.0%} of its "
                "change (mean of the rounds; strategy = 'rolora' or 'fedex' misses nothing)"
            )
        for statement in summary.get("privacy", []):
            self.say(styled((printable(f"spent: {statement['text']}"), "cyan")))
        if summary["status"] == FINISHED:
            end = f"adapter: {result.folder / 'adapter'}   record: {result.folder}"
        else:
            self.say(styled((summary["status"], "red"), f": {printable(summary['reason'])}"))
            end = f"no adapter was written   record: {result.folder}"
        self.console.print(end, soft_wrap=True)

    def _clear(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None

    def _count(self, line: Json) -> None:
        self.bytes[0] += line["bytes_up"]
        self.bytes[1] += line["bytes_down"]
