"""The planner: measures a device and says which way of getting a gradient fits its memory."""

from forefed.core.facade import callable_package
from forefed.plan.plan import Plan, Row, plan
from forefed.plan.scene import Scene, Way

__all__ = ["Plan", "Row", "Scene", "Way", "plan"]
callable_package(__name__, plan)
