"""Local training at a client, and its replay at the server."""

from forefed.core.settings import Registry
from forefed.local.best_of_three import BestOfThree
from forefed.local.brought import Brought
from forefed.local.flow import Flow
from forefed.local.hyperfl import HyperFl
from forefed.local.replay import check_slopes, replay, variance_of
from forefed.local.training import LocalTraining, TaskView, Trainer

CLIENTS: Registry[LocalTraining] = Registry(
    "client", [LocalTraining, Brought, Flow, HyperFl, BestOfThree]
)
__all__ = [
    "CLIENTS",
    "BestOfThree",
    "Brought",
    "Flow",
    "HyperFl",
    "LocalTraining",
    "TaskView",
    "Trainer",
    "check_slopes",
    "replay",
    "variance_of",
]
