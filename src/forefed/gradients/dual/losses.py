"""Rules of the losses: cross-entropy of classes and of labels, squared error."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forefed.gradients.dual.tensor import Dual, fresh, rule, tangents, value


@rule(F.cross_entropy)
def cross_entropy(
    logits: Dual,
    target: Tensor,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Dual:
    """l = log sum exp z - z_y: l' = sum p z' - z'_y, for rows of logits [N, C] and classes [N]."""
    plain = weight is None and label_smoothing == 0 and logits.dim() == 2 and target.dim() == 1
    if not plain or target.is_floating_point():
        raise TypeError("cross_entropy of dual numbers: logits [N, C], classes [N], no weights")
    z_NC, y_N = value(logits), target.clamp(min=0)
    counted_N = target != ignore_index
    losses = z_NC.new_empty(len(logits.slices), len(target))
    losses[0] = F.cross_entropy(z_NC, target, ignore_index=ignore_index, reduction="none")
    p_NC1 = torch.softmax(z_NC, 1)[:, :, None]
    tangents_NKC = tangents(logits).transpose(0, 1)
    expected_NK = torch.bmm(tangents_NKC, p_NC1)[:, :, 0]
    own_NK = tangents_NKC.gather(2, y_N[:, None, None].expand(-1, tangents_NKC.shape[1], 1))[..., 0]
    losses[1:] = ((expected_NK - own_NK) * counted_N[:, None]).T
    if reduction == "none":
        return fresh(losses)
    total = losses.sum(1)
    return fresh(total if reduction == "sum" else total / counted_N.sum())


@rule(F.binary_cross_entropy_with_logits)
def binary_cross_entropy_with_logits(
    logits: Dual,
    target: Tensor,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Dual:
    """l = log(1 + e^z) - y z: l' = (sigmoid(z) - y) z'."""
    if isinstance(target, Dual) or weight is not None or pos_weight is not None:
        raise TypeError("binary_cross_entropy_with_logits of dual numbers: no weights")
    z = value(logits)
    losses = torch.empty_like(logits.slices)
    losses[0] = F.binary_cross_entropy_with_logits(z, target, reduction="none")
    torch.mul(tangents(logits), torch.sigmoid(z) - target, out=losses[1:])
    return _reduced(losses, reduction)


@rule(F.mse_loss)
def mse_loss(
    input: Dual,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Dual:
    """l = (z - y)^2: l' = 2 (z - y) z'."""
    if isinstance(target, Dual) or weight is not None:
        raise TypeError("mse_loss of dual numbers: constant targets, no weights")
    error = value(input) - target
    losses = torch.empty_like(input.slices)
    torch.mul(error, error, out=losses[0])
    torch.mul(tangents(input), 2 * error, out=losses[1:])
    return _reduced(losses, reduction)


def _reduced(losses: Tensor, reduction: str) -> Dual:
    """The loss [1 + K, ...] of every element, as it was asked for."""
    if reduction == "none":
        return fresh(losses)
    whole = losses.flatten(1)
    return fresh(whole.sum(1) if reduction == "sum" else whole.mean(1))
