"""Does a model that is 80 % sure turn out right in 80 of 100 cases?

Source: Guo et al. 2017 (arXiv 1706.04599), section 2: bins of equal width, and the expected
calibration error, the mean distance of confidence and accuracy over the bins, by their examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


def bins(confidence: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """By bin of confidence: how many, their summed confidence, and how many are right [3, BINS].

    Args:
        confidence: from 0 to 1; a bin has its upper end, as in the source.
    """
    confidence = np.nan_to_num(confidence)  # of a model that has diverged
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return np.stack(
        [
            np.bincount(place, weights=weights, minlength=BINS)
            for weights in (np.ones(len(place)), confidence.astype(np.float64), right.astype(float))
        ]
    )


def error(sums_3B: NDArray[np.float64]) -> float:
    """The expected calibration error of ``bins``, or of their sum."""
    count, confidence, right = sums_3B
    return float(np.abs(confidence - right).sum() / max(count.sum(), 1))


def curve(sums_3B: NDArray[np.float64]) -> list[list[float]]:
    """By bin that holds any: how many, their mean confidence, the share that is right."""
    return [
        [float(n), round(float(c / n), 4), round(float(r / n), 4)] for n, c, r in sums_3B.T if n > 0
    ]
