"""The server's half of the scalar channel: a client's local training again, from its slopes.

Source: DeComFL (arXiv 2405.15861) and FedKSeed (arXiv 2312.06353) for replay; the client's own
stateful optimiser is replayed step by step here, so the change equals the client's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.states import State
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.local.groups import Group, groups_of, rebuild
from forefed.local.training import Trainer, advance

LARGEST = 1e30  # a mean of slopes up to here rebuilds finite parameters


def replay(trainer: Trainer, order: Order, update: Update) -> Update:
    """``update`` with ``grad`` (old - new) and ``last`` rebuilt; a dense update as it is.

    Raises:
        ProtocolError: groups or numbers of slopes that the order does not have.
    """
    if update.slopes is None:
        return update
    groups = check_slopes(trainer, order, update)
    start = params = trees.pick(order.params, order.assigned)
    ctx = ClientContext(order=order, head=trainer.task.head)
    states: dict[str, State] = {}
    last: Params = {}
    steps = max((len(x) for x in update.slopes.values()), default=0)
    for step in range(steps):
        slopes = {name: x[step] for name, x in update.slopes.items()}
        last = grad = rebuild(slopes, groups, params, step)
        params, states = advance(trainer, ctx, params, states, grad, step)
    if not trees.all_finite(params):
        raise ProtocolError(f"client {order.client}: the replayed parameters are not finite")
    return replace(
        update, grad=trees.subtract(start, params), last=last if trees.all_finite(last) else {}
    )


def check_slopes(trainer: Trainer, order: Order, update: Update) -> dict[str, Group]:
    """The groups of this order, if the update's slopes are for them.

    Raises:
        ProtocolError: other groups, another number of slopes a step, or a size that no gradient
            has.
    """
    slopes = update.slopes or {}
    groups = groups_of(trainer.engine, trainer.codec, order, trainer.task.head, trainer.directions)
    if slopes.keys() != groups.keys():
        raise ProtocolError(
            f"client {order.client}: slopes for {sorted(slopes)}, not {sorted(groups)}"
        )
    for name, group in groups.items():
        count = group.directions.count(trees.pick(order.params, group.names))
        if len(slopes[name]) and slopes[name].shape[1] != count:
            raise ProtocolError(f"group {name!r} needs {count} slopes a step")
        finite = torch.nan_to_num(slopes[name], 0.0, 0.0, 0.0)  # not finite is a skipped step
        if bool((finite.abs() > LARGEST).any()):
            raise ProtocolError(f"client {order.client}: a slope is larger than {LARGEST:g}")
    return groups


def variance_of(trainer: Trainer, order: Order) -> Mapping[str, float]:
    """1 + v by parameter: E|what arrives|^2 over |gradient|^2; exact: 1.

    Noise comes from an estimating engine, or from a codec of slopes, which projects an exact
    gradient on a few directions.
    """
    engine, head = trainer.engine, trainer.task.head
    found = dict.fromkeys(order.assigned, 1.0)
    for group in groups_of(engine, trainer.codec, order, head, trainer.directions).values():
        elements = sum(order.params[n].numel() for n in group.names)
        noise = group.directions.noise(elements, group.parts)
        found |= dict.fromkeys(group.names, 1 + noise)
    return found
