"""A weighted sum that grows as answers come, with the same bits in whatever order they do.

Sums of floating point depend on their order. Here it is that of a list of clients, which is known
before anybody answers: who comes early waits for those before it, until they have answered or are
lost. Where answers come in about that order, as in one process, nobody waits long, and what is held
does not grow with the number of clients.

Legend: D elements of a contribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RunningSum:
    """sum w x over clients, and sum w, in float64.

    Args:
        clients: in the order in which they are added.
        size: D.
    """

    def __init__(self, clients: Sequence[int], size: int):
        self.total_D = torch.zeros(size, dtype=torch.float64)
        self.weight = 0.0
        self._clients = clients
        self._next = 0
        self._waiting: dict[int, tuple[float, NDArray[np.float32]] | None] = {}
        self._wide_D = np.zeros(size)
        self._wide = torch.from_numpy(self._wide_D)

    @property
    def waiting(self) -> int:
        """Contributions that wait for somebody before them."""
        return sum(one is not None for one in self._waiting.values())

    def add(self, client: int, weight: float, x_D: NDArray[np.float32]) -> float | None:
        """What a client adds. Its memory is free afterwards.

        Returns:
            Its length; None: it is not finite, and is left out.
        """
        np.copyto(self._wide_D, x_D)
        square = float(np.dot(self._wide_D, self._wide_D))
        if not np.isfinite(square):  # (squares of float32 are finite in float64)
            self.leave_out(client)
            return None
        if self._is_next(client):
            self.total_D.add_(self._wide, alpha=weight)
            self.weight += weight
            self._pass()
        else:
            self._waiting[client] = weight, x_D.copy()
        return float(square**0.5)

    def leave_out(self, client: int) -> None:
        """Nothing comes of this client."""
        self._waiting.setdefault(client, None)
        self._flush()

    def finished(self) -> Tensor:
        """The sum [D] of all that came."""
        for client in self._clients[self._next :]:
            self.leave_out(client)
        return self.total_D

    def _is_next(self, client: int) -> bool:
        return self._next < len(self._clients) and self._clients[self._next] == client

    def _pass(self) -> None:
        self._next += 1
        self._flush()

    def _flush(self) -> None:
        while self._next < len(self._clients) and self._clients[self._next] in self._waiting:
            one = self._waiting.pop(self._clients[self._next])
            self._next += 1
            if one is not None:
                np.copyto(self._wide_D, one[1])
                self.total_D.add_(self._wide, alpha=one[0])
                self.weight += one[0]
