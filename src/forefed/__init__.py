"""Forefed: federated fine-tuning of language models for private text and small machines.

from forefed import configure, run
result = run(configure(sets=["strategy=spry", "rounds=20"]))
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# No part of Flower, where it is installed, may report anything to anybody.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# The profiler that measures memory announces every start on standard error otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

if TYPE_CHECKING:
    from forefed.compare import Study, compare
    from forefed.core.errors import UserError
    from forefed.core.keys import Key
    from forefed.models.black_box import BlackBox
    from forefed.models.outside import load
    from forefed.models.target_projection import TargetProjection
    from forefed.plan import Scene, plan
    from forefed.report import read_run, report, write_report
    from forefed.run import (
        Callback,
        Config,
        Result,
        Watcher,
        configure,
        register,
        run,
        simulate,
    )
    from forefed.strategies import Strategy
    from forefed.use.export import export_adapter
    from forefed.use.predict import predict

_HOMES = {
    "forefed.compare": ("Study", "compare"),
    "forefed.core.errors": ("UserError",),
    "forefed.core.keys": ("Key",),
    "forefed.hf": ("hf",),
    "forefed.models.black_box": ("BlackBox",),
    "forefed.models.outside": ("load",),
    "forefed.models.target_projection": ("TargetProjection",),
    "forefed.plan": ("Scene", "plan"),
    "forefed.report": ("read_run", "report", "write_report"),
    "forefed.run": (
        *("Callback", "Config", "Result", "Watcher"),
        *("configure", "register", "run", "simulate"),
    ),
    "forefed.use.export": ("export_adapter",),
    "forefed.use.predict": ("predict",),
    "forefed.strategies": ("Strategy",),
}
"""Where each public name is defined. A package of the same name is callable (core/facade.py)."""
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BlackBox",
    "Callback",
    "Config",
    "Key",
    "Result",
    "Scene",
    "Strategy",
    "Study",
    "TargetProjection",
    "UserError",
    "Watcher",
    "compare",
    "configure",
    "export_adapter",
    "load",
    "plan",
    "predict",
    "read_run",
    "register",
    "report",
    "run",
    "simulate",
    "write_report",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the library when it is used, so that ``forefed --help`` answers at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'forefed' has no attribute {name!r}")
    home = import_module(_HOME[name])
    return home if _HOME[name] == f"forefed.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
