"""In how many rounds each client was asked, where a promise of privacy limits them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from forefed.core.states import keep
from forefed.federation.state import PARTICIPATION, RunState
from forefed.modifiers import Modifier, Private


def cap_of(modifiers: Iterable[Modifier]) -> int | None:
    """Rounds that one client takes part in at most."""
    caps = [m.participation for m in modifiers if isinstance(m, Private)]
    return min((c for c in caps if c is not None), default=None)


def available(members: Sequence[int], state: RunState, cap: int | None) -> Sequence[int]:
    """The members that may still be drawn."""
    if cap is None:
        return members
    done = state.of(PARTICIPATION)
    spent = done["client"][done["rounds"] >= cap].tolist() if done else []
    return [m for m in members if m not in {*spent}]


def counted(state: RunState, asked: Iterable[int], cap: int | None) -> RunState:
    """``state`` with one round more for each that was asked, where rounds are limited."""
    if cap is None:
        return state
    done = state.of(PARTICIPATION)
    rounds: Counter[int] = Counter([*asked])
    if done:
        rounds.update(dict(zip(done["client"].tolist(), done["rounds"].tolist(), strict=True)))
    clients = sorted(rounds)
    columns = {"client": clients, "rounds": [rounds[c] for c in clients]}
    kept = {name: torch.tensor(x, dtype=torch.int64) for name, x in columns.items()}
    return replace(state, states=keep(state.states, PARTICIPATION, kept if clients else {}))
