"""A head of several layers without a backward pass: each fits a fixed projection of the label.

Source: tpSGD (Lomnitz et al., arXiv 2208.08503). For layer i with input x, z = W x + b and y =
tanh(z), a fixed random P_i [width, classes] and the label's one-hot e:

    W <- W + rate ((P_i e - y) * tanh'(z)) x^T         ("l1": the sign of the residual)

and the last layer has the exact gradient of its own cross-entropy. Each is the gradient of a loss
of that layer alone, |P_i e - y|^2 / 2, whose input is a constant: so it is written here, and any
exact engine, optimiser, codec and rule serves. No layer's step needs the weights behind it.

    loss = forefed.TargetProjection(features=384, widths=(128, 64), classes=6)
    forefed.simulate(loss, loss.first(forefed.Key(0)), clients, head=loss.head, ...)

Clients hold "x" [rows, features] and "labels" [rows].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Batch, Params

TARGET = 0.9
"""Of every unit, up or down: tanh reaches 1 nowhere."""


@dataclass(frozen=True)
class TargetProjection:
    """A ``LossFn`` for ``forefed.simulate``: layers that learn without one another.

    Args:
        features: of a row.
        widths: of the hidden layers.
        classes: labels from 0.
        norm: of a hidden layer's residual.
        run: the targets' public key.
    """

    features: int
    widths: tuple[int, ...]
    classes: int
    norm: Literal["l2", "l1"] = "l2"
    run: int = 0

    def __post_init__(self) -> None:
        if min(self.features, self.classes, *self.widths) < 1 or self.norm not in ("l2", "l1"):
            raise UserError(
                "TargetProjection: features, widths and classes are at least 1, norm is 'l2' or "
                "'l1'"
            )

    @property
    def head(self) -> tuple[str, ...]:
        """The parameters of the last layer, which takes another rate (``head_lr``)."""
        last = len(self.widths)
        return f"{last}.weight", f"{last}.bias"

    def first(self, key: Key) -> Params:
        """First values: normal of variance 1 / inputs; the last layer at 0."""
        sizes = [self.features, *self.widths, self.classes]
        params: Params = {}
        for i, (wide, tall) in enumerate(pairwise(sizes)):
            drawn = key.fold("layer", i).normal((tall, wide)) * wide**-0.5
            params[f"{i}.weight"] = drawn if i < len(self.widths) else torch.zeros(tall, wide)
            params[f"{i}.bias"] = torch.zeros(tall)
        return params

    def targets(self, layer: int) -> Tensor:
        """P of a hidden layer: [width, classes], 0.9 or -0.9."""
        shape = self.widths[layer], self.classes
        return TARGET * Key(self.run).fold("target", layer).rademacher(shape)

    def layers(self, params: Params, x_BF: Tensor) -> list[Tensor]:
        """What the hidden layers make of rows: [B, width] each, of inputs that are constants."""
        found: list[Tensor] = []
        for i in range(len(self.widths)):
            z = x_BF @ params[f"{i}.weight"].T + params[f"{i}.bias"]
            found.append(torch.tanh(z))
            x_BF = found[-1].detach()
        return found

    def logits(self, params: Params, x_BF: Tensor) -> Tensor:
        """[B, classes]"""
        weight, bias = self.head
        inside = [x_BF, *self.layers(params, x_BF)][-1].detach()
        return inside @ params[weight].T + params[bias]

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """The mean cross-entropy; its gradient by a hidden layer is that of the layer's own."""
        x_BF, labels_B = batch.inputs["x"], batch.inputs["labels"]
        inside = self.layers(params, x_BF)
        local = torch.zeros(())
        for i, y in enumerate(inside):
            residual = self.targets(i).to(y)[:, labels_B].T - y
            each = residual.abs() if self.norm == "l1" else residual.square() / 2
            local = local + each.sum(1).mean()
        weight, bias = self.head
        last = (inside[-1] if inside else x_BF).detach()
        loss = cross_entropy(last @ params[weight].T + params[bias], labels_B)
        return loss + (local - local.detach())

    def weight(self, batch: Batch) -> int:
        return batch.size
