"""Is this text among the client's rows? A guess is confirmed by computing its update anew.

Sources: Li et al., "Effective passive membership inference attacks in federated learning against
overparameterized models" (ICLR 2023) for the cosine with a candidate's gradient. Ours: everything
else of a message is a function of public settings and keys, so a client with one row and one step
is recomputed to the bit from the right guess; and who knows all other rows decides any message
without noise in the same way (the adversary of differential privacy's definition).

Axes: N candidates, M measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from forefed.core import trees
from forefed.core.types import Update

SAME = 1e-4
"""Relative distance up to which two messages are the same: what another machine's rounding does."""


def scores(observed_M: Tensor, expected: Sequence[Tensor]) -> Tensor:
    """The cosine [N] of each candidate's expected message with the observed one; -1 for what is no
    number."""
    found = []
    for guess_M in expected:
        product = float(observed_M.norm() * guess_M.norm())
        value = float(torch.dot(observed_M, guess_M)) / product if product else 0.0
        found.append(value if math.isfinite(value) else -1.0)
    return torch.tensor(found, dtype=torch.float64)


def distance(a: Update, b: Update) -> float:
    """Relative distance of two messages; infinite where they are not alike in form."""
    one, other = payload_of(a), payload_of(b)
    if one.shape != other.shape:
        return math.inf
    both = torch.isfinite(one) & torch.isfinite(other)
    size = float(one[both].norm())
    gap = float((one[both] - other[both]).norm())
    return gap / size if size else (0.0 if gap == 0 else math.inf)


def payload_of(update: Update) -> Tensor:
    """All numbers of a message, flat."""
    held = update.grad if update.grad is not None else update.slopes or {}
    named = {n: held[n] for n in sorted(held)}
    return trees.flatten(named).double() if named else torch.zeros(0, dtype=torch.float64)
