"""Keeps processes running: starts them, writes their output to a log, starts them again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # after so long a run, a crash counts as the first one again
GRACE_S = 10.0


@dataclass(frozen=True)
class Pause:
    """Seconds after which a start may succeed that has just been refused, and what refused it."""

    seconds: float
    why: str


@dataclass(frozen=True)
class Program:
    """A command to keep running.

    ``fatal``: exit codes that starting again will not mend; ``patient``: those that time mends.
    """

    name: str
    command: Sequence[str]
    fatal: frozenset[int] = frozenset()
    patient: Mapping[int, Pause] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside that of all programs."""


@dataclass
class Running:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    again_at: float = 0.0
    log_start: int = 0
    """Where in its log the present start begins."""
    crashes: int = 0
    said: str = ""


class Stopped(Exception):
    """A program ended with a code that starting again will not mend."""


def supervise(
    programs: Sequence[Program],
    logs: Path,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    poll_s: float = 0.2,
) -> None:
    """Run these programs until a signal ends this, then end them.

    Raises:
        Stopped: one of them cannot run; the others are ended.
    """
    running = [Running(p) for p in programs]
    ends: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        ends.append(number)

    before = {n: signal.signal(n, end) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while not ends:
            for each in running:
                look_after(each, logs, environment, say)
            time.sleep(poll_s)
    finally:
        stop([r.process for r in running if r.process is not None])
        for number, handler in before.items():
            signal.signal(number, handler)


def look_after(
    each: Running, logs: Path, environment: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Start the program if it does not run and its pause is over."""
    now = time.monotonic()
    path = logs / f"{each.program.name}.log"
    code = None if each.process is None else each.process.poll()
    if each.process is not None and code is None:
        return
    if code is not None:
        each.process = None
        code = _reason(path, each.log_start) or code
        if code in each.program.fatal:
            raise Stopped(f"{each.program.name} ended with code {code}; {path} says why")
        if now - each.started > STEADY_S:
            each.crashes, each.said = 0, ""
        each.crashes += 1
        seconds = min(LONGEST_PAUSE_S, 0.5 * 2.0 ** min(each.crashes - 1, 10))
        pause = each.program.patient.get(code, Pause(seconds, f"it ended with code {code}"))
        each.again_at = now + pause.seconds
        if pause.why != each.said:  # many attempts for one reason are one message
            say(f"{each.program.name} is started again: {pause.why}")
        each.said = pause.why
    if now >= each.again_at:
        with path.open("ab") as output:
            os.chmod(path, 0o600)
            each.log_start = output.tell()
            each.process = subprocess.Popen(
                each.program.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, **each.program.environment},
                start_new_session=True,  # Ctrl-C is ours to pass on, and what they start ends too
            )
        each.started = now


def _reason(log_file: Path, start: int) -> int | None:
    """What Flower writes last: "Exit Code: 305". The system is told no more than 1."""
    with log_file.open("rb") as file:
        file.seek(start)
        found = re.findall(rb"Exit Code: (\d+)", file.read())
    return int(found[-1]) if found else None


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End these processes and what they have started."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    last = time.monotonic() + GRACE_S
    while time.monotonic() < last and any(p.poll() is None for p in processes):
        time.sleep(0.1)
    for process in processes:
        _signal(process, signal.SIGKILL)  # also what is left of its group
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def tool(name: str) -> str:
    """A command that was installed beside this Python."""
    return str(Path(sys.executable).parent / name)
