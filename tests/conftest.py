"""Settings of every test: no network, no telemetry, repeatable property tests."""

import gc
import os
import shutil
import sys
import sysconfig

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests fork, and threads do not: before torch

import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

os.environ["FOREFED_CACHE"] = tempfile.mkdtemp(prefix="forefed-cache-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
sys.path.insert(0, str(Path(__file__).parent))

from hypothesis import settings

import forefed  # noqa: F401  (sets the environment before torch loads)
from commands import finished, forefed_command  # noqa: F401  (fixtures)
from faults import pytest_addoption, pytest_configure  # noqa: F401  (hooks)
from federation import world  # noqa: F401
from forefed.data import pydocs
from real import federation  # noqa: F401
from studies import fake_cells  # noqa: F401

settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["FOREFED_CACHE"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """What collection has made stays; the collector need not look through it again and again."""
    gc.freeze()


def parsed_once(read: Callable[[Path], Iterable[str]]) -> Callable[[Path], Iterable[str]]:
    """The interpreter's own files are parsed once a process, not once a run (2.5 s);
    test_data_sources.py looks at how they are parsed, in a library of its own."""
    library = Path(sysconfig.get_paths()["stdlib"])
    kept = cache(lambda path: tuple(read(path)))
    return lambda path: kept(path) if path.is_relative_to(library) else read(path)


pydocs._docstrings_of = parsed_once(pydocs._docstrings_of)


def no_flush(handle: int) -> None:
    """What is written survives a kill of the process without it; only a loss of power would tell
    (test_core_files.py and test_run_faults.py look at when it is asked for)."""
    os.fstat(handle)


os.fsync = no_flush
"""An eighth of the suite's time, with 2,600 flushes in 30 tests."""
