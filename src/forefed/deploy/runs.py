"""Runs between machines: handed to Flower, and followed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from forefed import __version__
from forefed.core.errors import UserError
from forefed.core.files import write_atomic
from forefed.core.types import Json
from forefed.deploy.connect import ERROR, NOTES
from forefed.deploy.places import ServerFolder
from forefed.deploy.server_folder import CONNECTION, flwr
from forefed.run import record
from forefed.run.compat import check
from forefed.run.config import Config

APP = """\
[project]
name = "forefed-app"
version = "{version}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "forefed"

[tool.flwr.app.components]
serverapp = "forefed_server:app"
clientapp = "forefed_client:app"

[tool.flwr.app.config]
folder = ""
here = ""
resume = false
"""
PARTS = ("server", "client")
MODULE = 'from forefed.deploy.flower_{part} import app\n\n__all__ = ["app"]\n'
"""What Flower carries to its processes: only where the installed package is entered."""

POLL_S = 1.0
SILENT = "silent"
ASK_S = 15.0  # between two questions to Flower; each starts one of its processes


def start_run(folder: ServerFolder, config: Config, resume: bool) -> str:
    """Hand a run to the server; returns Flower's number for it.

    Raises:
        UserError: settings that cannot work, or Flower refuses it.
    """
    check(config, deployed=True)
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
    write_atomic(app / "pyproject.toml", APP.format(version=__version__).encode())
    for part in PARTS:
        write_atomic(app / f"forefed_{part}.py", MODULE.format(part=part).encode())
    values = f'folder="{handed}" here="{Path.cwd()}" resume={str(resume).lower()}'
    return str(flwr(folder, "run", str(app), CONNECTION, "--run-config", values)["run-id"])


def follow(
    folder: ServerFolder, config: Config, number: str, say: Callable[[str], None]
) -> Json | None:
    """Show the rounds of a run until it ends; returns its summary (None: stopped watching).

    Raises:
        UserError: the run failed, with its reason where it has one.
    """
    shown = {NOTES: 0, record.ROUNDS: 0}
    asked, status = time.monotonic(), "running"
    try:
        while True:
            if time.monotonic() - asked > ASK_S:
                before, status = status, status_of_run(folder, number)
                asked = time.monotonic()
                if status == SILENT != before:
                    say("the server does not answer; it is asked again, and the run may go on")
            ended = record.summary(config.folder)
            for name in shown:
                lines = record.read_lines(config.folder, name)
                for line in lines[shown[name] :]:
                    say(line["text"] if name == NOTES else describe_round(line))
                shown[name] = len(lines)
            if ended is not None:
                say(f"finished: {config.folder}; digest {ended['digest'][:16]}")
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


def describe_round(line: Json) -> str:
    """One line of rounds.jsonl for the console."""
    lost = ", ".join(f"{n} {reason}" for reason, n in line["lost"].items())
    loss = "no loss" if line["loss"] is None else f"loss {line['loss']:.4f}"
    parts = [
        f"round {line['round']}: {loss}, {line['replies']} of {len(line['cohort'])} answers",
        f"{line['bytes_up']:,} bytes up",
        f"{line['seconds']['total']:.1f} s",
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
