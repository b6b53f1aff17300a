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
from forefed.directions import Directions, StepDirections
from forefed.gradients import GradientEngine
from forefed.wire import Codec

Slopes = dict[str, Tensor]
"""Group -> slopes [K] of one local step."""


@dataclass(frozen=True)
class Group:
    """Parameters over which one slope runs, and their directions at step 0."""

    names: tuple[str, ...]
    directions: StepDirections
    parts: int = 1
    """Of a batch that have directions of their own."""


def groups_of(
    engine: GradientEngine,
    codec: Codec,
    order: Order,
    head: frozenset[str],
    kind: Directions,
) -> dict[str, Group]:
    """The groups whose slopes decide this client's step; the rest has an exact gradient."""
    assigned = list(order.assigned)
    body = engine.perturbed(assigned, head)
    exact = [n for n in assigned if n not in body]
    groups: dict[str, Group] = {}
    if body:
        parts = getattr(engine, "sub_batches", 1)
        groups["body"] = Group(tuple(body), kind.of(order, body, parts=parts), parts)
    if codec.sends_slopes:
        rest, last = [n for n in exact if n not in head], [n for n in exact if n in head]
        if rest:
            groups["body"] = Group(tuple(rest), kind.of(order, rest, projected=True))
        if last:
            groups["head"] = Group(tuple(last), kind.of_head(order, last))
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
