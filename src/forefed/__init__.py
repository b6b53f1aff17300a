"""Forefed: federated fine-tuning of language models for private text and small machines.

from forefed import configure, run
result = run(configure(sets=["strategy=spry", "rounds=20"]))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# The partitioners come from flwr-datasets; no part of it may report anything to anybody.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# The profiler that measures memory announces every start on standard error otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

if TYPE_CHECKING:
    from forefed.core.errors import UserError
    from forefed.core.keys import Key
    from forefed.run import Config, Result, Watcher, configure, register, run, simulate
    from forefed.strategies import Strategy

__all__ = [
    "Config",
    "Key",
    "Result",
    "Strategy",
    "UserError",
    "Watcher",
    "configure",
    "register",
    "run",
    "simulate",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the library when it is used, so that ``forefed --help`` answers at once."""
    if name not in __all__:
        raise AttributeError(f"module 'forefed' has no attribute {name!r}")
    import forefed.run

    if name == "UserError":
        from forefed.core.errors import UserError

        return UserError
    if name == "Key":
        from forefed.core.keys import Key

        return Key
    if name == "Strategy":
        from forefed.strategies import Strategy

        return Strategy
    return getattr(forefed.run, name)
