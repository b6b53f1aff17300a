"""Runs cells side by side, each in a process of its own with one thread.

One thread each, because the sum of threads on the machine then is the number of jobs, and because
rounding must not depend on how many cells run at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from forefed.compare.grid import Cell
from forefed.core.errors import UserError
from forefed.run import record

COMMAND = [sys.executable, "-m", "forefed.compare.cell"]
POLL_S = 0.1
LOGS = "logs"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Watch:
    """Told what the schedule does; the default is silence."""

    def planned(self, cells: Sequence[Cell], finished: int, jobs: int) -> None: ...

    def rounds(self, cell: Cell, done: int) -> None: ...

    def ended(self, cell: Cell, error: str | None) -> None: ...


@dataclass(frozen=True)
class Slot:
    """Where one cell at a time runs: ``gpu`` is what CUDA_VISIBLE_DEVICES is set to."""

    gpu: str | None = None


@dataclass
class Job:
    """A cell with its process."""

    cell: Cell
    slot: Slot
    process: subprocess.Popen[bytes]
    log: Path


def slots_of(cells: Sequence[Cell], jobs: int | None) -> list[Slot]:
    """As many as ``jobs``; None: one per GPU where cells ask for one, else one per core.

    Raises:
        UserError: fewer than one job.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one cell must run at a time")
    gpus = _gpus() if any(c.config.model.device in ("auto", "cuda") for c in cells) else []
    count = jobs or len(gpus) or cores()
    return [Slot(gpus[i % len(gpus)] if gpus else None) for i in range(min(count, len(cells)))]


def cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = visible.split(",") if visible else []
    return named or [str(i) for i in range(torch.cuda.device_count())]


def run_cells(cells: Sequence[Cell], jobs: int | None, logs: Path, watch: Watch) -> dict[str, str]:
    """Run every cell that is not finished; a finished one is left untouched.

    A cell that fails is reported, and the others go on. Ctrl-C ends all processes.

    Args:
        jobs: cells at a time; see ``slots_of``.
        logs: folder for what the cells print.

    Returns:
        What went wrong, by the name of the cell.
    """
    waiting = [cell for cell in cells if not cell.finished]
    free = slots_of(waiting, jobs)
    watch.planned(cells, len(cells) - len(waiting), len(free))
    failed: dict[str, str] = {}
    running: list[Job] = []
    with _all_ended(running):
        while waiting or running:
            while waiting and free:
                running.append(start(waiting.pop(0), free.pop(0), logs))
            time.sleep(POLL_S)
            for job in list(running):
                watch.rounds(job.cell, rounds_done(job.cell))
                if job.process.poll() is None:
                    continue
                running.remove(job)
                free.append(job.slot)
                _close(job)
                error = None if job.cell.finished else _error(job)
                if error is not None:
                    failed[job.cell.name] = error
                watch.ended(job.cell, error)
    return failed


def rounds_done(cell: Cell) -> int:
    path = cell.folder / record.ROUNDS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(cell: Cell, slot: Slot, logs: Path) -> Job:
    """A process for the cell, which ends when this one does; it logs to ``logs``."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{cell.name}.log"
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    if slot.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
    with log.open("wb") as file:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent alone
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended already; its log says why
        process.stdin.write(cell.config.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    return Job(cell, slot, process, log)


@contextmanager
def _all_ended(running: list[Job]) -> Iterator[None]:
    """No process outlives the block, however it is left."""
    try:
        yield
    finally:
        for job in running:
            job.process.kill()
        for job in running:
            job.process.wait()
            _close(job)


def _close(job: Job) -> None:
    stdin: IO[bytes] | None = job.process.stdin
    if stdin is not None:
        with suppress(BrokenPipeError):
            stdin.close()


def _error(job: Job) -> str:
    """The message of a process that ended early: the last lines of its log."""
    text = job.log.read_text(encoding="utf-8", errors="replace").strip()
    if job.process.returncode == 2 and text:
        return text
    last = text.splitlines()[-1] if text else f"ended with status {job.process.returncode}"
    return f"{last} (see {job.log})"
