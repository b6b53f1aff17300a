"""Running a federation: configuration, the star loop, records, checkpoints."""

from forefed.run.config import Config, configure, register
from forefed.run.run import Result, Watcher, run

__all__ = ["Config", "Result", "Watcher", "configure", "register", "run"]
