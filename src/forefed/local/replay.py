"""The server's half of the scalar channel: a client's local training again, from its slopes.

Source: DeComFL (arXiv 2405.15861) and FedKSeed (arXiv 2312.06353) for replay; the client's own
stateful optimiser is replayed step by step here, so the change equals the client's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.states import State
from forefed.core.types import ClientContext, Order, Params, Update
from forefed.directions.sets import RandomDirections
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
    ended = _as_vectors(trainer, ctx, groups, start, update.slopes)
    if ended is None:
        ended = _step_by_step(trainer, ctx, groups, start, update.slopes)
    params, last = ended
    if not trees.all_finite(params):
        raise ProtocolError(f"client {order.client}: the replayed parameters are not finite")
    return replace(
        update, grad=trees.subtract(start, params), last=last if trees.all_finite(last) else {}
    )


def _step_by_step(
    trainer: Trainer,
    ctx: ClientContext,
    groups: dict[str, Group],
    params: Params,
    slopes_TK: Mapping[str, Tensor],
) -> tuple[Params, Params]:
    """Parameters and gradient after the last step, for anything that can be replayed."""
    states: dict[str, State] = {}
    last: Params = {}
    for step in range(max((len(x) for x in slopes_TK.values()), default=0)):
        slopes = {name: x[step] for name, x in slopes_TK.items()}
        last = grad = rebuild(slopes, groups, params, step)
        params, states = advance(trainer, ctx, params, states, grad, step)
    return params, last


def _as_vectors(
    trainer: Trainer,
    ctx: ClientContext,
    groups: dict[str, Group],
    params: Params,
    slopes_TK: Mapping[str, Tensor],
) -> tuple[Params, Params] | None:
    """The same to the bit, at a fraction of the calls: all directions are drawn at one time, as
    all slopes are there, and each group moves as one vector.

    None where the bits could differ, or a vector cannot say it: modifiers, an optimiser that
    looks beyond an element, a group of which a part moves at the head's rate, and what
    ``combine_steps`` leaves to ``combine``.
    """
    optimiser = trainer.settings.optimiser
    counts = {len(x) for x in slopes_TK.values()}
    if trainer.modifiers or not optimiser.by_element or len(counts) != 1 or counts == {0}:
        return None
    whole: Params = {}
    found: Params = {}
    for name, group in groups.items():
        likes, kind = trees.pick(params, group.names), group.directions
        if not isinstance(kind, RandomDirections) or 0 < len(ctx.head & likes.keys()) < len(likes):
            return None
        grads_TD = kind.combine_steps(likes, slopes_TK[name])
        if grads_TD is None:
            return None
        whole[name], found[name] = trees.flatten(likes), grads_TD
    head = frozenset(n for n, group in groups.items() if ctx.head.issuperset(group.names))
    vectors, states, grad = replace(ctx, head=head), dict[str, State](), Params()
    for step in range(counts.pop()):
        grad = {name: x[step] for name, x in found.items()}
        whole, states = advance(trainer, vectors, whole, states, grad, step)

    def apart(tree: Params) -> Params:
        pieces = [
            trees.unflatten(tree[name], trees.pick(params, group.names))
            for name, group in groups.items()
        ]
        return {name: x for some in pieces for name, x in some.items()}

    moved = params | apart(whole)
    return moved, apart(grad)


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
