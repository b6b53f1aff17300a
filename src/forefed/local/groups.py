"""Which parameters of a client share one set of directions.

"body": the adapters (and the head too when it is perturbed as published); "head": the head, whose
exact gradient the scalar channel projects on directions of its own. Client and server build the
same groups from the same settings and the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.types import Estimate, Order, Params
from forefed.gradients import GradientEngine
from forefed.gradients.directions import BasisDirections, Directions
from forefed.gradients.draw import Draw
from forefed.wire import Codec, Projections

Slopes = dict[str, Tensor]
"""Group -> slopes [K] of one local step."""

PROJECTIONS = 16  # directions for an exact engine's adapters under a codec of slopes


@dataclass(frozen=True)
class Group:
    """Parameters over which one slope runs, and their directions at step 0."""

    names: tuple[str, ...]
    directions: Directions


def groups_of(
    engine: GradientEngine,
    codec: Codec,
    order: Order,
    head: frozenset[str],
    draw: Draw,
) -> dict[str, Group]:
    """The groups whose slopes decide this client's step; the rest has an exact gradient."""
    assigned = list(order.assigned)
    body = engine.perturbed(assigned, head)
    exact = [n for n in assigned if n not in body]
    groups: dict[str, Group] = {}
    directions = engine.directions_for(order, body, draw)
    if body and directions is not None:
        groups["body"] = Group(tuple(body), directions)
    if isinstance(codec, Projections):
        for name, members, count in (
            ("body", [n for n in exact if n not in head], codec.directions or PROJECTIONS),
            ("head", [n for n in exact if n in head], codec.head_directions),
        ):
            if members:
                own: Directions = (
                    BasisDirections()
                    if count == "all"
                    else draw.of(order, members, count, codec.law, projected=True)
                )
                groups[name] = Group(tuple(members), own)
    return groups


def project(estimate: Estimate, groups: dict[str, Group], params: Params, step: int) -> Slopes:
    """The slopes of one step, float32 as they travel."""
    slopes: Slopes = {}
    for name, group in groups.items():
        if name == "body" and estimate.slopes_K is not None:
            values = estimate.slopes_K
        else:
            exact = trees.pick(estimate.grad, group.names)
            values = group.directions.at(step).project(exact)
        slopes[name] = values.to(torch.float32)
    return slopes


def rebuild(slopes: Slopes, groups: dict[str, Group], params: Params, step: int) -> Params:
    """The gradient that one step's slopes stand for; groups without a finite slope are left out."""
    grad: Params = {}
    for name, group in groups.items():
        like = trees.pick(params, group.names)
        directions = group.directions.at(step)
        grad.update(directions.combine(like, slopes[name]) or {})
    return grad
