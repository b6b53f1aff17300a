"""Settings of every test: no network, no telemetry, repeatable property tests."""

import os
import shutil
import sys
import tempfile
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
from real import federation  # noqa: F401
from studies import fake_cells  # noqa: F401

settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["FOREFED_CACHE"], ignore_errors=True)


def no_flush(handle: int) -> None:
    """What is written survives a kill of the process without it; only a loss of power would tell
    (test_core_files.py and test_run_faults.py look at when it is asked for)."""
    os.fstat(handle)


os.fsync = no_flush
"""An eighth of the suite's time, with 2,600 flushes in 30 tests."""
