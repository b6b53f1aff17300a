"""Measuring memory: the exact peak of live allocator bytes, and the process's resident memory.

The allocator peak is what an engine needs above everything that lived before (the weights above
all); the resident size also holds libraries, caches and fragmentation. Both are reported, because a
user's limit is the second and an engine's doing is the first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import psutil
import torch
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import ProfilerConfig, ProfilerState, RecordScope, _ExperimentalConfig
from torch.profiler import ProfilerActivity

T = TypeVar("T")


def measure_peak(work: Callable[[], T], device: torch.device | None = None) -> tuple[T, int]:
    """The result of ``work()`` and the peak of live bytes it added on its device.

    On a CPU the profiler's allocation events are summed in order of time; on CUDA the allocator
    counts by itself.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    with _allocations() as changes:
        result = work()
    give_back()
    live = peak = 0
    for _, nbytes in sorted(changes, key=lambda change: change[0]):
        live += nbytes
        peak = max(peak, live)
    return result, peak


@contextmanager
def _allocations() -> Iterator[list[tuple[int, int]]]:
    """The time and the bytes of every allocation (above 0) and release on the CPU, once it is left.

    torch's profiler, told to note what the user has marked by name. Its public form notes every
    operator, too: six times as many events, and a third of the time of a run of a tiny model.
    """
    kinds = {ProfilerActivity.CPU}
    plan = ProfilerConfig(
        ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig()
    )
    changes: list[tuple[int, int]] = []
    _prepare_profiler(plan, kinds)
    _enable_profiler(plan, kinds, {RecordScope.USER_SCOPE})  # type: ignore[call-arg]
    try:
        yield changes
    finally:
        events = _disable_profiler().events()
        changes += [
            (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
            for event in events
            if event.name() == "[memory]"
        ]


def give_back() -> None:
    """Pages that the C library keeps for later go back to the system, where it is glibc.

    The profiler's many small records lie between what stays: 300 small rounds of SPRY ended with
    910 MB of resident memory, of which 380 were free (docs/LOG.md).
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)
