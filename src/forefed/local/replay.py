"""The server's half of the scalar channel: a client's local training again, from its slopes.

Source: DeComFL (arXiv 2405.15861) and FedKSeed (arXiv 2312.06353) for replay; the client's own
stateful optimiser is replayed step by step here, so the change equals the client's, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

from forefed.core import trees
from forefed.core.errors import ProtocolError
from forefed.core.types import Order, ServerState, Update
from forefed.local.groups import groups_of, rebuild
from forefed.local.training import Trainer, advance


def replay(trainer: Trainer, order: Order, update: Update) -> Update:
    """``update`` with ``grad`` (old - new) rebuilt from its slopes; a dense update as it is.

    Raises:
        ProtocolError: groups or numbers of slopes that the order does not have.
    """
    if update.slopes is None:
        return update
    groups = groups_of(trainer.engine, trainer.codec, order, trainer.task.head)
    if update.slopes.keys() != groups.keys():
        raise ProtocolError(
            f"client {order.client}: slopes for {sorted(update.slopes)}, not {sorted(groups)}"
        )
    start = params = trees.pick(order.params, order.assigned)
    state: ServerState = {}
    steps = max((len(x) for x in update.slopes.values()), default=0)
    for step in range(steps):
        slopes = {name: x[step] for name, x in update.slopes.items()}
        grad = rebuild(slopes, groups, params, step)
        params, state = advance(trainer.settings.optimiser, params, state, grad, trainer.task.head)
    if not trees.all_finite(params):
        raise ProtocolError(f"client {order.client}: the replayed parameters are not finite")
    return replace(update, grad=trees.subtract(start, params))
