"""How the updates of one round become one descent direction, parameter by parameter.

Each parameter is averaged over the clients that trained it, and over nobody else: a parameter that
nobody trained is absent from the result. Updates are ordered by client id first, so the result does
not depend on the order of arrival.

Legend: N clients that hold the parameter, D its elements.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.core.settings import Choice
from forefed.core.types import Params, ServerState, Update


class Rule(Choice):
    """Base: (state, ids, x_ND, w_N) -> (state, x_D) for one parameter."""

    weights: Literal["inverse_variance", "examples"] = "inverse_variance"
    """Clients may run engines of unequal noise: weigh by example counts over the variance of the
    estimate, or by example counts alone. The same where all engines are equally noisy."""
    max_ratio: Annotated[float, Field(ge=1)] = 10.0
    """Most that an exact contribution counts against the noisiest of its parameter: for its own
    data, not only its noise, must a client be heard."""

    @abstractmethod
    def __call__(
        self, state: ServerState, ids: Sequence[int], x_ND: Tensor, w_N: Tensor
    ) -> tuple[ServerState, Tensor]:
        """One direction out of N, float64 in and out."""

    def weights_of(self, name: str, held: Sequence[Update]) -> Tensor:
        """Weights [N] of these clients for one parameter: n_i min(v_max / v_i, max_ratio).

        Source: inverse-variance weighting. They depend on engines and counts, never on values, so
        an unbiased estimate stays unbiased.
        """
        n_N = torch.tensor([u.n_examples for u in held], dtype=torch.float64)
        if self.weights == "examples":
            return n_N
        v_N = torch.tensor([u.variance.get(name, 1.0) for u in held], dtype=torch.float64)
        return n_N * (v_N.max() / v_N).clamp(max=self.max_ratio)


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
        w_N = rule.weights_of(name, held)
        state, x_D = rule(state, [u.client for u in held], x_ND, w_N)
        result[name] = x_D.to(tensors[0].dtype).reshape(tensors[0].shape)
    return state, result
