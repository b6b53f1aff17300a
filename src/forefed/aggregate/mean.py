"""The weighted mean (FedAvg, arXiv 1602.05629).

Where answers are too many to hold, the same sum grows as they come (streaming_mean.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.aggregate.aggregator import Aggregator, Metrics
from forefed.core.states import State
from forefed.core.types import Contribution, Params, ServerContext


class Mean(Aggregator):
    """Mean weighted by example counts."""

    kind: Literal["mean"] = "mean"
    weights: Literal["inverse_variance", "examples"] = "inverse_variance"
    """Clients may run engines of unequal noise: weigh by example counts over the variance of the
    estimate, or by example counts alone. The same where all engines are equally noisy."""
    max_ratio: Annotated[float, Field(ge=1)] = 10.0
    """Most that an exact contribution counts against the noisiest of its parameter: for its own
    data, not only its noise, must a client be heard."""

    source: ClassVar[str] = "McMahan et al., arXiv 1602.05629"
    individual: ClassVar[bool] = False
    runs: ClassVar[bool] = True

    def __call__(
        self, cs: Sequence[Contribution], state: State, ctx: ServerContext
    ) -> tuple[Params, State, Metrics]:
        holders: dict[str, list[Contribution]] = {}
        for c in cs:
            for name in c.delta:
                holders.setdefault(name, []).append(c)
        total: Params = {}
        for name, held in holders.items():
            first = held[0].delta[name]
            x_ND = torch.stack([c.delta[name] for c in held]).reshape(len(held), -1).double()
            w_N = self.weights_of(name, held)
            parts_N = w_N / (w_N.sum() if ctx.divisor is None else ctx.divisor)
            total[name] = (parts_N @ x_ND).to(first.dtype).reshape(first.shape)
        return total, state, {}

    def weights_of(self, name: str, held: Sequence[Contribution]) -> Tensor:
        """Weights [N] of these clients for one parameter: n_i min(v_max / v_i, max_ratio).

        Source: inverse-variance weighting. They depend on engines and counts, never on values, so
        an unbiased estimate stays unbiased.
        """
        n_N = torch.tensor([c.weight for c in held], dtype=torch.float64)
        noise = [c.noise.get(name, 1.0) for c in held]
        if self.weights == "examples" or min(noise) == max(noise):
            return n_N
        v_N = torch.tensor(noise, dtype=torch.float64)
        return n_N * (v_N.max() / v_N).clamp(max=self.max_ratio)
