"""The record of a run: a folder that a person, a report and a resumed run can read.

config.json        the resolved configuration
environment.json   versions, processor, data provenance, model, and what is measured
partition.json     who holds what
rounds.jsonl       one line per round
evaluations.jsonl  one line per evaluation (round 0: the untrained model)
privacy.jsonl      of a private run every release, entered before it is made; it only grows
details.json       of the last one on the test set what is no single number (confusion, classes)
clients.json       of the last evaluation on clients' own rows each of them: rows, and the metric
checkpoint.safetensors          where the run goes on
checkpoint-best.safetensors     the parameters of the best evaluation so far
adapter/                        of a run that trained something
summary.json                    when the run has ended
report.html                     on request
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from forefed.config.config import Config
from forefed.core import files
from forefed.core.errors import UserError
from forefed.core.files import read_table, read_table_lines, without_nan, write_atomic, write_json
from forefed.core.installed import version
from forefed.core.shortfalls import HEAD, UNTRAINED
from forefed.core.types import Json

ROUNDS, EVALUATIONS, SUMMARY = "rounds.jsonl", "evaluations.jsonl", "summary.json"
DETAILS, START, CLIENTS = "details.json", "start.json", "clients.json"
AUDIT = "audit.json"
ENVIRONMENT = "environment.json"


AGAIN = "restore it from a copy, or start the run anew under another name"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The run folder for this process alone, without what a kill left half written.

    Raises:
        UserError: another process is running in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"{folder}: another process is running in this folder; wait for it, or choose another "
        "name (--set name=...)"
    )
    with files.locked(folder / ".lock", busy):
        files.sweep(folder)
        yield


def write_config(folder: Path, config: Config) -> None:
    write_json(folder / "config.json", config.model_dump(mode="json"))


def read_config(folder: Path) -> Json:
    """The configuration a run was started with.

    Raises:
        UserError: the folder holds no run.
    """
    path = folder / "config.json"
    if not path.exists() and not path.is_symlink():
        raise UserError(f"{folder}: no run here (config.json is missing); 'forefed run' makes one")
    return read_table(path, AGAIN)


def append(folder: Path, name: str, line: Json) -> None:
    """One JSON line, flushed; a kill can tear the last line only, which readers ignore."""
    files.append(folder / name, json.dumps(without_nan(line), ensure_ascii=False).encode() + b"\n")


def read_lines(folder: Path, name: str) -> list[Json]:
    """The whole lines of a record file; a torn last line is left out.

    Raises:
        UserError: a line that is damaged otherwise, or is of no round.
    """
    fits = partial(_fits, name) if name in (ROUNDS, EVALUATIONS) else None
    return read_table_lines(folder / name, AGAIN, fits)[0]


def write_changes(folder: Path, round: int, found: list[Json], origin: Json) -> None:
    """What the user accepted to have changed before the round after this one."""
    path = folder / ENVIRONMENT
    about = read_table(path, AGAIN)
    about["changes"] = [*about.get("changes", []), {"round": round, "changed": found}]
    about["origin"] = origin
    write_json(path, about)


NUMBERS = ("bytes_up", "bytes_down", "forwards")


def _fits(name: str, line: Json) -> bool:
    """Has the line what the code reads of it?"""
    if not _is_count(line.get("round")):
        return False
    if name == EVALUATIONS:
        return isinstance(line.get("split"), str)
    seconds = line.get("seconds")
    return (
        all(isinstance(line.get(key), int | float) for key in NUMBERS)
        and isinstance(seconds, dict)
        and isinstance(seconds.get("total"), int | float)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def truncate(folder: Path, round: int) -> None:
    """Forget what was written after the checkpoint of ``round``: it will be written again."""
    for name in (ROUNDS, EVALUATIONS):
        kept = [line for line in read_lines(folder, name) if line["round"] <= round]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_atomic(folder / name, text.encode())


def check_whole(folder: Path, round: int) -> None:
    """A record has every round up to that of its checkpoint, and the first evaluation.

    Raises:
        UserError: lines are missing, or stand there twice.
    """
    rounds = [line["round"] for line in read_lines(folder, ROUNDS) if line["round"] <= round]
    if rounds != list(range(1, round + 1)):
        missing = sorted({*range(1, round + 1)} - {*rounds})
        what = f"round {missing[0]} is missing" if missing else "its rounds are out of order"
        raise UserError(
            f"{folder / ROUNDS}: damaged ({what}, and the checkpoint is of round {round}); {AGAIN}"
        )
    first = next((e for e in read_lines(folder, EVALUATIONS) if e["split"] == "test"), None)
    if round and (first is None or first["round"] != 0):
        raise UserError(
            f"{folder / EVALUATIONS}: damaged (the evaluation of round 0 is missing); {AGAIN}"
        )


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
    """The summary of a run that has ended, or None.

    Raises:
        UserError: damaged.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    remedy = "remove it, and 'forefed run --resume' writes it again"
    found = read_table(path, remedy)
    rounds, best = found.get("rounds"), (found.get("final"), found.get("baseline"))
    whole = _is_count(rounds) and isinstance(found.get("digest"), str)
    if not whole or not all(isinstance(part, dict) for part in best):
        raise UserError(f"{path}: damaged (not what a run writes); {remedy}")
    return found


def read_json(path: Path) -> Json:
    """A JSON file of a record.

    Raises:
        UserError: missing or damaged.
    """
    return read_table(path)


def before(folder: Path) -> str:
    """What a run's model is called before round 1: its solved head alone, or untrained."""
    return HEAD if (folder / START).is_file() else UNTRAINED


def label_names(folder: Path) -> list[str]:
    """The classes that a run learns, in their order.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / "partition.json"
    labels = read_table(path, AGAIN).get("labels")
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise UserError(f"{path}: damaged (it names no classes under 'labels'); {AGAIN}")
    return labels
