"""The one place where an error that nobody caught becomes a sentence and an exit status.

0    done
2    the user's: a message with its place and its remedy
3    the run ended without a model worth using (it diverged, nobody answered, nothing moved)
70   ours: "a fault of Forefed", with the trace in a file (EX_SOFTWARE of sysexits.h)
130  stopped by Ctrl-C or by the system
141  nobody reads the output any more
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType

from forefed.core.errors import Stopped, UserError, of_system
from forefed.core.terminal import printable

USER, UNTRAINED, FAULT, STOPPED, UNREAD = 2, 3, 70, 130, 141

_MEMORY = ("OutOfMemoryError", "_ArrayMemoryError")
"""torch's and numpy's own errors, which are told by name, so that neither is imported here."""


def guarded(work: Callable[[], int | None], say: Callable[[str], None]) -> int:
    """Do ``work`` and return the exit status; whatever ends it early is told by ``say``.

    SIGTERM ends it as Ctrl-C does. A second signal ends the process at once: what is on the disk
    is whole at every moment.
    """
    before = {
        number: signal.signal(number, _first)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN  # as for what runs in the background
    }
    try:
        try:
            return work() or 0
        except KeyboardInterrupt:
            say("stopped")
            return STOPPED
        except Exception as error:
            status, text = explain(error)
            if text:
                say(text)
            return status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def explain(error: Exception) -> tuple[int, str]:
    """The exit status, and what to say. A fault of ours leaves its trace in a file, which is
    named."""
    if isinstance(error, Stopped):
        return STOPPED, printable(str(error))
    if isinstance(error, BrokenPipeError):
        _nobody_reads()
        return UNREAD, ""
    known = error if isinstance(error, UserError) else _users(error)
    if known is not None:
        return USER, printable(f"error: {known}")
    place = _keep_trace(error)
    return FAULT, printable(
        f"error: this is a fault of Forefed ({type(error).__name__}), please report it; what is "
        f"needed to mend it is in {place} (read it first: it may name your files)"
    )


def _users(error: Exception) -> UserError | None:
    if isinstance(error, OSError):
        return of_system(error)
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ in _MEMORY
    # torch's allocator for the processor raises a plain RuntimeError
    if out_of_memory or "can't allocate memory" in str(error):
        return UserError(
            "memory is full: lower client.batch_size, data.max_length or evaluate.batch_size, or "
            "choose a smaller model; 'forefed plan' says what fits"
        )
    return None


def _keep_trace(error: Exception) -> str:
    head = (
        f"forefed {version('forefed')}, Python {platform.python_version()}, {platform.platform()}\n"
    )
    text = head + "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(prefix="forefed-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        sys.stderr.write(printable(text))  # better a trace on the screen than none
        return "the lines above"
    return path


def _first(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(each) is _first:  # what is ignored in the background stays so
            signal.signal(each, _second)
    raise KeyboardInterrupt


def _second(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\nstopped at once\n")
    os._exit(STOPPED)


def _nobody_reads() -> None:
    """The interpreter flushes its streams as it ends, and shall not stumble then."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(null, stream.fileno())
        except (OSError, ValueError):
            continue  # a stream that is none of the system's cannot stumble
