"""Local training at a client, and its replay at the server."""

from forefed.core.settings import Registry
from forefed.local.replay import replay
from forefed.local.training import LocalTraining, TaskView, Trainer

CLIENTS: Registry[LocalTraining] = Registry("client", [LocalTraining])
__all__ = ["CLIENTS", "LocalTraining", "TaskView", "Trainer", "replay"]
