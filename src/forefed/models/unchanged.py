"""What was read of a model's folder holds for as long as its files are the same ones.

A run asks for the same configuration, tokeniser and shape several times: to check them, to
tokenise, to load, to write its card. transformers reads the files each time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

from forefed.models.place import find
from forefed.models.settings import ModelSettings

KEPT = 4
"""Answers of each function: configurations, vocabularies, models without their weights."""

R = TypeVar("R")
State = tuple[tuple[str, int, int, int], ...]


def state_of(folder: Path) -> State:
    """Name, number on the disk, size and time of every file, and of those one folder further
    down (1_Pooling)."""
    found = [(path, path.stat()) for at in ("*", "*/*") for path in sorted(folder.glob(at))]
    return tuple((str(path), s.st_ino, s.st_size, s.st_mtime_ns) for path, s in found)


def while_unchanged(read: Callable[..., R], copied: Callable[[R], R]) -> Callable[..., R]:
    """``read(settings, ...)``, which is asked once for each state of the model's files.

    Args:
        copied: what a caller gets of the answer: of what it might change, a copy of its own.
    """

    @lru_cache(maxsize=KEPT)
    def remembered(state: State, settings: ModelSettings, *rest: Any) -> R:
        return read(settings, *rest)

    @wraps(read)
    def asked(settings: ModelSettings, *rest: Any) -> R:
        return copied(remembered(state_of(find(settings).folder), settings, *rest))

    return asked
