"""Running a federation: configuration, the star loop, records, checkpoints."""

from forefed.config.config import Config, configure, register
from forefed.core.facade import callable_package
from forefed.run.callback import Callback
from forefed.run.run import Watcher, run
from forefed.run.simulate import Simulation, simulate
from forefed.run.summary import Result

__all__ = [
    "Callback",
    "Config",
    "Result",
    "Simulation",
    "Watcher",
    "configure",
    "register",
    "run",
    "simulate",
]
callable_package(__name__, run)
