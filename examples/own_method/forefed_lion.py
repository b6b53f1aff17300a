"""Lion, an optimizer for clients and servers, and a strategy that uses it.

Source: Chen et al., "Symbolic discovery of optimization algorithms", Algorithm 2 (arXiv
2302.06675).

    c <- b1 m + (1 - b1) g;  w <- w - rate (sign(c) + decay w);  m <- b2 m + (1 - b2) g
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.optimisers import Beta, Optimiser, Rate
from forefed.strategies import Strategy


class Lion(Optimiser):
    """Signs of an interpolated momentum (Lion)."""

    kind: Literal["lion"] = "lion"
    lr: Rate = 1e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    weight_decay: Rate = 0.0

    source: ClassVar[str] = "Chen et al., arXiv 2302.06675"
    state_names: ClassVar[tuple[str, ...]] = ("m",)

    def update(
        self, rate: float, w: Tensor, g: Tensor, moments: dict[str, Tensor], t: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        direction = torch.sign(self.beta1 * moments["m"] + (1 - self.beta1) * g)
        if self.weight_decay:
            direction = direction + self.weight_decay * w
        return {"m": self.beta2 * moments["m"] + (1 - self.beta2) * g}, w - rate * direction


FEDLION = Strategy(
    name="fedlion",
    summary="FedAvg whose clients step with Lion.",
    source="Chen et al., arXiv 2302.06675",
    sections={
        "assign": {"kind": "everything"},
        "engine": {"kind": "backprop"},
        "adapter": {"kind": "lora"},
        "client": {"optimiser": {"kind": "lion", "lr": 1e-3}},
        "codec": {"kind": "dense"},
    },
)
