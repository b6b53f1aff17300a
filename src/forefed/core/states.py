"""Who keeps what between rounds: one form for the server, clients, checkpoints and ledgers.

An owner is "optimizer", "aggregator", "private", "modifier.<kind>"; its state is a dict of tensors
by names of its own. Flat, a tensor stands at "<owner>/<name>", so owners have no "/".
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]
"""Tensors of one owner, by its own names; empty at first. Never mutated after construction."""
States = Mapping[str, State]
"""States by owner."""


def flat(states: States) -> State:
    """All tensors by "<owner>/<name>"."""
    return {f"{owner}/{name}": x for owner, state in states.items() for name, x in state.items()}


def of_flat(tensors: Mapping[str, Tensor]) -> dict[str, State]:
    """The inverse; owners without a tensor are left out."""
    states: dict[str, State] = {}
    for place, x in tensors.items():
        owner, _, name = place.partition("/")
        states.setdefault(owner, {})[name] = x
    return states


def below(tensors: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose place starts with ``prefix/``, without it."""
    prefix += "/"
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def keep(states: States, owner: str, state: State) -> dict[str, State]:
    """``states`` with this owner's in the place of its former one (none, where it is empty)."""
    others = {o: s for o, s in states.items() if o != owner}
    return {**others, owner: state} if state else others
