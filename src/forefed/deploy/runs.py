"""Runs between machines: handed to Flower, and followed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forefed import __version__
from forefed.config.compat import check
from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.metrics import Measures
from forefed.core.shortfalls import shortfalls
from forefed.core.sizes import format_duration
from forefed.core.types import Json
from forefed.deploy.connect import ERROR, NOTES
from forefed.deploy.names import usable_folder
from forefed.deploy.places import ServerFolder
from forefed.deploy.server_folder import CONNECTION, flwr
from forefed.models.objectives import OBJECTIVES
from forefed.run import record
from forefed.run.card import against
from forefed.run.provenance import check_accepting
from forefed.run.summary import FINISHED

APP = """\
[project]
name = "forefed-app"
version = "{version}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "forefed"

[tool.flwr.app.components]
serverapp = "forefed_{server}:app"
clientapp = "forefed_client:app"

[tool.flwr.app.config]
folder = ""
here = ""
resume = false
accept-changes = false
"""
MODULE = 'from forefed.deploy.flower_{part} import app\n\n__all__ = ["app"]\n'
"""What Flower carries to its processes: only where the installed package is entered."""

POLL_S = 1.0
SILENT = "silent"
ASK_S = 15.0  # between two questions to Flower; each starts one of its processes


def start_run(
    folder: ServerFolder, config: Config, resume: bool = False, accept_changes: bool = False
) -> str:
    """Hand a run to the server; returns Flower's number for it.

    ``resume`` and ``accept_changes`` are those of ``forefed.run.run``.

    Raises:
        UserError: settings that cannot work, or Flower refuses it.
    """
    check_accepting(resume, accept_changes)
    check(config, deployed=True)
    here = usable_folder(Path.cwd())
    if (config.folder / "config.json").exists() != resume:
        raise UserError(
            f"{config.folder}: there is no run to resume here"
            if resume
            else f"{config.folder}: a run of this name exists already; go on with it by --resume, "
            "or choose another name (--set name=...)"
        )
    handed = folder.apps / config.name
    (handed / ERROR).unlink(missing_ok=True)
    record.write_config(handed, config)
    app = handed / "app"  # only this travels to the sites
    write_app(app, "server")
    flags = {"resume": resume, "accept-changes": accept_changes}
    said = " ".join(f"{name}={str(on).lower()}" for name, on in flags.items())
    values = f'folder="{handed}" here="{here}" {said}'
    return str(flwr(folder, "run", str(app), CONNECTION, "--run-config", values)["run-id"])


def write_app(app: Path, server: str) -> None:
    """What Flower is given: the module of its process at the server, and of that at a site."""
    text = APP.format(version=__version__, server=server)
    write_atomic(app / "pyproject.toml", text.encode())
    for part in (server, "client"):
        write_atomic(app / f"forefed_{part}.py", MODULE.format(part=part).encode())


def follow(
    folder: ServerFolder, config: Config, number: str, say: Callable[[str], None]
) -> Json | None:
    """Show the rounds of a run until it ends; returns its summary (None: stopped watching).

    Raises:
        UserError: the run failed, with its reason where it has one.
    """
    screen = Screen(config)
    asked, status = time.monotonic(), "running"
    try:
        while True:
            if time.monotonic() - asked > ASK_S:
                before, status = status, status_of_run(folder, number)
                asked = time.monotonic()
                if status == SILENT != before:
                    say("the server does not answer; it is asked again, and the run may go on")
            ended = record.summary(config.folder)
            for text in screen.news():
                say(text)
            if ended is not None:
                for text in screen.closing(ended):
                    say(text)
                return ended
            if status.startswith("finished"):
                raise UserError(f"the run ended without a result: {_reason(folder, config)}")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        say(f"the run goes on; 'forefed server stop {folder.root} {number}' ends it")
        return None


def status_of_run(folder: ServerFolder, run: str) -> str:
    """Flower's word for the state of a run, for example "finished:completed"; SILENT: the server
    does not answer, for example as it is being started again."""
    try:
        found = flwr(folder, "list", CONNECTION, "--run-id", run)["runs"]
    except UserError:
        return SILENT
    return str(found[0]["status"]) if found else "unknown"


@dataclass
class Screen:
    """What of a run's record has been shown; quality is that of the server's own test rows."""

    config: Config
    shown: dict[str, int] = field(default_factory=lambda: dict.fromkeys((NOTES, record.ROUNDS), 0))
    begun: bool = False

    def news(self) -> list[str]:
        """Lines for what has come since the last time."""
        folder = self.config.folder
        new = {}
        for name in self.shown:
            found = record.read_lines(folder, name)
            new[name] = found[self.shown[name] :]
            self.shown[name] = len(found)
        # after the rounds: a round's own evaluation is written before its line
        tests = record.read_lines(folder, record.EVALUATIONS)
        by_round = {line["round"]: line for line in tests if line["split"] == "test"}
        said = [str(line["text"]) for line in new[NOTES]]
        if not self.begun and 0 in by_round:
            self.begun = True
            said.append(f"{record.before(folder)}: {self.quality(by_round[0])}")
        for line in new[record.ROUNDS]:
            test = by_round.get(line["round"])
            said.append(describe_round(line, self.quality(test) if test else ""))
        return said

    @property
    def measures(self) -> Measures:
        return OBJECTIVES[self.config.data.task.head].measures

    def quality(self, test: Json) -> str:
        """An evaluation with its interval, the rows it is of, and what costs nothing."""
        facts = [f"{test['n']:,} test {self.measures.terms}"]
        if test.get("low") is not None and test.get("high") is not None:
            facts.append(f"95 %: {test['low']:.3f} to {test['high']:.3f}")
        about = self.config.folder / "environment.json"
        base = record.read_json(about).get("majority") if about.exists() else None
        if base is not None:
            facts.append(f"{self.measures.decides.chance or 'baseline'} {base:.3f}")
        decides = self.measures.decides
        return f"{decides.said(decides.of(test))} ({'; '.join(facts)})"

    def closing(self, summary: Json) -> list[str]:
        """Result and places; or why there is no result."""
        folder = self.config.folder
        if summary["status"] != FINISHED:
            reason = summary.get("reason", "its record says more")
            return [f"ended as '{summary['status']}': {reason} ({folder})"]
        baseline = against(self.measures, summary["baseline"])
        return [
            f"finished: {self.quality(summary['final'])}",
            f"to compare: {baseline}; digest {summary['digest'][:16]}",
            *shortfalls(self.measures, summary["final"], summary.get("best"), summary["baseline"]),
            f"adapter: {folder / 'adapter'}   record: {folder}",
        ]


def describe_round(line: Json, quality: str = "") -> str:
    """One line of rounds.jsonl for the console, with the quality after it, if it was evaluated."""
    lost = ", ".join(f"{n} {reason}" for reason, n in line["lost"].items())
    loss = "no loss" if line["loss"] is None else f"loss {line['loss']:.4f}"
    parts = [
        f"round {line['round']}: {quality + ', ' if quality else ''}{loss}",
        f"{line['replies']} of {len(line['cohort'])} answers",
        f"{line['bytes_up']:,} bytes up",
        format_duration(line["seconds"]["total"]),
    ]
    if lost:
        parts.append(f"lost: {lost}")
    if line["abandoned"]:
        parts.append("abandoned: too few answers")
    return ", ".join(parts)


def _reason(folder: ServerFolder, config: Config) -> str:
    error = folder.apps / config.name / ERROR
    if not error.exists():
        return f"its process was ended; --resume goes on with it (the logs are in {folder.logs})"
    return f"{record.read_json(error)['error']} (more in {error})"
