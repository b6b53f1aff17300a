"""Along which directions slopes are taken: the slot ``directions``, one kind a file."""

from forefed.core.settings import Registry
from forefed.directions.basis import Basis
from forefed.directions.candidates import Candidates
from forefed.directions.clamp import RunningClamp
from forefed.directions.directions import Directions, StepDirections
from forefed.directions.fresh import Fresh, RandomKind
from forefed.directions.pool import Pool

DIRECTIONS: Registry[Directions] = Registry("directions", [Fresh, Basis, Pool, Candidates])


def taking(directions: Directions, k: int | None, exact: bool = False) -> Directions:
    """The kind that takes ``k`` random directions a step, or the unit vectors (``exact``): the same
    kind where it can, else ``Fresh`` or ``Basis`` with the same settings of the head."""
    common = {name: getattr(directions, name) for name in Directions.model_fields if name != "kind"}
    if exact:
        return Basis(**common)
    if isinstance(directions, RandomKind):
        return directions.model_copy(update={"k": k})
    return Fresh(**common, k=k)


__all__ = [
    "DIRECTIONS",
    "Basis",
    "Candidates",
    "Directions",
    "Fresh",
    "Pool",
    "RandomKind",
    "RunningClamp",
    "StepDirections",
    "taking",
]
