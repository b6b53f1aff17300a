"""How the updates of one round become one descent direction, parameter by parameter.

Each parameter is averaged over the clients that trained it, and over nobody else: a parameter that
nobody trained is absent from the result. Updates are ordered by client id first, so the result does
not depend on the order of arrival.

Legend: N clients that hold the parameter, D its elements.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from forefed.core.settings import Choice
from forefed.core.types import Params, ServerState, Update


class Rule(Choice):
    """Base: (state, ids, x_ND, w_N) -> (state, x_D) for one parameter."""

    @abstractmethod
    def __call__(
        self, state: ServerState, ids: Sequence[int], x_ND: Tensor, w_N: Tensor
    ) -> tuple[ServerState, Tensor]:
        """One direction out of N, float64 in and out; weights are example counts."""


def aggregate(
    rule: Rule, state: ServerState, updates: Sequence[Update]
) -> tuple[ServerState, Params]:
    """The rule applied to every parameter that somebody with at least one example trained."""
    holders: dict[str, list[Update]] = {}
    for update in sorted(updates, key=lambda u: u.client):
        assert update.grad is not None, "updates are replayed before they are aggregated"
        if update.n_examples > 0:
            for name in update.grad:
                holders.setdefault(name, []).append(update)
    result: Params = {}
    for name, held in holders.items():
        tensors = [u.grad[name] for u in held if u.grad is not None]
        x_ND = torch.stack(tensors).reshape(len(held), -1).double()
        w_N = torch.tensor([u.n_examples for u in held], dtype=torch.float64)
        state, x_D = rule(state, [u.client for u in held], x_ND, w_N)
        result[name] = x_D.to(tensors[0].dtype).reshape(tensors[0].shape)
    return state, result
