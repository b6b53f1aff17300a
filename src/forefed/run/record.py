"""The record of a run: a folder that a person, a report and a resumed run can read.

config.json        the resolved configuration
environment.json   versions, processor, data provenance, model, and what is measured
partition.json     who holds what
rounds.jsonl       one line per round
evaluations.jsonl  one line per evaluation (round 0: the untrained model)
details.json       of the last one on the test set what is no single number (confusion, classes)
checkpoint.safetensors, adapter/, summary.json (when finished), report.html (on request)
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from forefed.core.errors import UserError
from forefed.core.files import without_nan, write_atomic, write_json
from forefed.core.types import Json
from forefed.run.config import Config

ROUNDS, EVALUATIONS, SUMMARY = "rounds.jsonl", "evaluations.jsonl", "summary.json"
DETAILS = "details.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The run folder for this process alone.

    Raises:
        UserError: another process is running in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is running in this folder; wait for it, or choose "
                "another name (--set name=...)"
            ) from None
        yield


def write_config(folder: Path, config: Config) -> None:
    write_json(folder / "config.json", config.model_dump(mode="json"))


def read_config(folder: Path) -> Json:
    """The configuration a run was started with.

    Raises:
        UserError: the folder holds no run.
    """
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no run here (config.json is missing); 'forefed run' makes one"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None


def append(folder: Path, name: str, line: Json) -> None:
    """One JSON line, flushed; a kill can tear the last line only, which readers ignore."""
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(without_nan(line), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(folder: Path, name: str) -> list[Json]:
    """The whole lines of a record file; a torn last line is left out."""
    path = folder / name
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(dict(json.loads(text)))
        except ValueError:
            break
    return lines


def truncate(folder: Path, round: int) -> None:
    """Forget what was written after the checkpoint of ``round``: it will be written again."""
    for name in (ROUNDS, EVALUATIONS):
        kept = [line for line in read_lines(folder, name) if line["round"] <= round]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_atomic(folder / name, text.encode())


def environment() -> Json:
    """Versions and machine, as every record states them."""
    packages = ("forefed", "torch", "transformers", "peft")
    return {
        **{name: version(name) for name in packages},
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit of the code that runs, "-dirty" with changes; None outside a checkout of it."""
    here = Path(__file__)
    said = ""
    for command in (
        ["git", "ls-files", "--error-unmatch", here.name],  # not just below somebody's checkout
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
    ):
        try:
            done = subprocess.run(
                command, cwd=here.parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        said = done.stdout.strip()
    return said


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None."""
    path = folder / SUMMARY
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def read_json(path: Path) -> Json:
    """A JSON file of a record.

    Raises:
        UserError: missing or damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
