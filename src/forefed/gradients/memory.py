"""Measuring memory: the exact peak of live allocator bytes, and the process's resident memory.

The allocator peak is what an engine needs above everything that lived before (the weights above
all); the resident size also holds libraries, caches and fragmentation. Both are reported, because a
user's limit is the second and an engine's doing is the first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def measure_peak(work: Callable[[], T], device: torch.device | None = None) -> tuple[T, int]:
    """The result of ``work()`` and the peak of live bytes it added on its device.

    On a CPU the profiler's allocation events are summed in order of time (costs about a tenth of a
    second); on CUDA the allocator counts by itself.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    peak = _peak_of(recorded)
    del recorded
    give_back()
    return result, peak


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


def _peak_of(recorded: profile) -> int:
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    live = peak = 0
    for _, nbytes in sorted(events, key=lambda e: e[0]):
        live += nbytes
        peak = max(peak, live)
    return peak


def resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)
