"""One bit a slope: its sign.

Source: FeedSign (arXiv 2501.17610), where all clients walk along one direction a step, each sends a
sign, and the model moves along what most of them say: ``directions.shared = true`` with the
aggregator "median" is that vote (strategy "feedsign").

A step's length says nothing of the gradient's any more, so learning rates are others than with
slopes. A slope of 0 gets a random sign; slopes that are not finite are told by their places.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.core.keys import Key
from forefed.wire.projections import Coded


class FeedSign(Coded):
    """One bit a slope: its sign; the length of a step is the learning rate's alone."""

    kind: Literal["feedsign"] = "feedsign"

    source: ClassVar[str] = "FeedSign, arXiv 2501.17610"
    wire_id: ClassVar[int] = 12
    bits: ClassVar[int] = 1

    def code(self, slopes_K: Tensor, key: Key) -> Tensor:
        coin_K = key.rademacher(slopes_K.shape)
        return (torch.where(slopes_K == 0, coin_K, slopes_K) > 0).to(torch.uint8)

    def value(self, codes: Tensor) -> Tensor:
        return codes.float() * 2 - 1

    def rests(self, slopes_K: Tensor) -> Tensor:
        return ~torch.isfinite(slopes_K)
