"""LoRA's B made by a network of all clients from an embedding of each one's own (HyperFL-LPM).

    f = relu(U e + c) [w],    B of matrix l = reshape(W_l f + b_l) [O, r]

e is the client's own; U, c and every W_l, b_l are common. The map is linear in (W, b), and b stands
alone: the gradient by b_l is that of B itself, and the gradient by W_l is g f^T, of rank one, whose
left singular vector is g up to scale. So what is sent tells the generated factor's gradient: this
is personalisation, and hides nothing (Guo et al., AAAI 2025, claim otherwise).

Legend: d length of the embedding, w width of the features, O outputs, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMBEDDING, INSIDE, SHIFT = "hyper_embedding", "hyper_inside", "hyper_shift"
"""e [d], U [w, d] and c [w], of the first adapted matrix alone."""
OUTSIDE, BIAS = "hyper_outside", "hyper_bias"
"""W [O r, w] and b [O r] of every matrix."""
PARTS = (EMBEDDING, INSIDE, SHIFT, OUTSIDE, BIAS)


def part_of(name: str) -> str:
    """Which of the parts above a parameter is; empty: none of them."""
    last = name.rsplit(".", 1)[-1]
    return last if last in PARTS else ""


def features(embedding: Tensor, inside: Tensor, shift: Tensor) -> Tensor:
    """f [w]."""
    return torch.relu(inside @ embedding + shift)


def generated(f_w: Tensor, outside: Tensor, bias: Tensor, rank: int) -> Tensor:
    """B [O, r]."""
    return (outside @ f_w + bias).view(-1, rank)
