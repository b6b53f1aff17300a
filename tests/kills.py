"""Work that is killed between any two of its writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forefed.core.keys import Key

KILLED = 137
ALL = os.environ.get("FOREFED_FAULTS") == "all"
"""As `make faults` says; otherwise tests take a few cases, and fewer rounds."""


def killed_at(point: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a copy of this process that ends, as by SIGKILL, at its ``point``-th flush to
    the disk or renaming: before it when ``point`` is even, after it when it is odd. Was it reached?
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    calls = [0]

    def stopping(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            calls[0] += 1
            if calls[0] == point // 2 + 1 and point % 2 == 0:
                os._exit(KILLED)
            done = real(*arguments)
            if calls[0] == point // 2 + 1:
                os._exit(KILLED)
            return done

        return call

    try:
        os.fsync, os.replace = stopping(os.fsync), stopping(os.replace)  # type: ignore[assignment]
        work()
    finally:
        os._exit(0)  # nothing of pytest's may run twice


def points(count: int, few: int) -> list[int]:
    """FOREFED_FAULTS=all: every one of them; else a few, each time the same."""
    if ALL:
        return list(range(count))
    return sorted(Key(5).fold("kills").choice(count, few))


@contextmanager
def written() -> Iterator[list[str]]:
    """Every flush and renaming in this process, the renamed by their new names."""
    calls: list[str] = []
    flush, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append("")
        flush(handle)

    def replace(old: str | Path, new: str | Path) -> None:
        calls.append(Path(new).name)
        rename(old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        yield calls
