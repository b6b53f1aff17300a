"""A0: the labels of a client's rows, from the head's gradient or from any other.

Sources: iDLG (Zhao et al., arXiv 2001.02610) for the row of the bias; Wainakh et al., "User-level
label leakage from gradients" (LLG, arXiv 2105.09369) for counts with auxiliary rows. Ours: where no
head travels, counts by non-negative least squares over auxiliary rows' mean gradients.

The gradient of a mean cross-entropy by the bias of the logits is the mean of p - onehot(y). At one
row its one negative entry is the label.

Axes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

Counts = NDArray[np.int64]
"""Rows by class [C]."""


def label_of(bias_C: Tensor) -> int:
    """The label of the one row whose gradient by the bias this is."""
    return int(bias_C.argmin())


def counts_of_bias(bias_C: Tensor, rows: int, chances_C: Tensor) -> Counts:
    """Rows by class from the mean gradient by the bias.

    Args:
        bias_C: mean over rows of p - onehot(y).
        rows: how many they are.
        chances_C: the mean p, from rows of one's own.
    """
    return rounded((chances_C - bias_C).double().numpy() * rows, rows)


def counts_of_gradient(products_C: Tensor, gram_CC: Tensor, rows: int) -> Counts:
    """Rows by class from any mean gradient g, as the mixture of classes that is closest to it.

    Args:
        products_C: <g, mu_c>, mu_c the mean gradient of one's own rows under label c.
        gram_CC: <mu_c, mu_d>.
        rows: how many they are.
    """
    gram = gram_CC.double()
    ridge = 1e-6 * float(gram.diagonal().mean()) + 1e-300
    root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=torch.float64))
    right = torch.linalg.solve_triangular(root, products_C.double()[:, None], upper=False)[:, 0]
    weights, _ = nnls(root.T.numpy(), right.numpy())
    total = float(weights.sum())
    shares = weights / total if total > 0 else np.full(len(weights), 1 / len(weights))
    return rounded(shares * rows, rows)


def rounded(shares_C: NDArray[np.float64], rows: int) -> Counts:
    """Whole numbers with the sum ``rows``, by the largest remainders; what is negative counts 0."""
    positive = np.clip(np.nan_to_num(shares_C), 0, None)
    total = positive.sum()
    scaled = positive * rows / total if total > 0 else np.full(len(positive), rows / len(positive))
    counts = np.floor(scaled).astype(np.int64)
    missing = rows - int(counts.sum())
    counts[np.argsort(counts - scaled, kind="stable")[:missing]] += 1
    return counts


def matched(guess_C: Counts, truth_C: Counts) -> float:
    """Share of the rows whose label is among those guessed, each counted once."""
    return float(np.minimum(guess_C, truth_C).sum() / truth_C.sum())


def even(rows: int, classes: int) -> Counts:
    """The guess of who knows nothing but the number of rows."""
    return rounded(np.ones(classes), rows)


def counted(labels: Sequence[int], classes: int) -> Counts:
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes)
