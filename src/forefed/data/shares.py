"""Who holds which training examples: written down, or drawn when a client is looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forefed.core.keys import Key
from forefed.data.examples import Indices

_TRIES = 16  # each try of a gamma variate is accepted with probability above 0.95


class Shares(Protocol):
    """The examples of ``size`` clients. ``dropped`` examples belong to nobody."""

    @property
    def size(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    def rows(self, client: int) -> Indices:
        """Positions of the client's examples, all different."""


@dataclass(frozen=True)
class Assigned:
    """A fixed assignment: client c holds ``flat[offsets[c]:offsets[c + 1]]``."""

    flat: Indices
    offsets: NDArray[np.int64]
    dropped: int

    @staticmethod
    def of(shares: Sequence[Indices], n_examples: int) -> Assigned:
        """From one array per client; each client's rows in ascending order."""
        flat = [np.sort(np.asarray(rows, dtype=np.int64)) for rows in shares]
        return Assigned.of_sizes(np.concatenate(flat), np.array([*map(len, flat)]), n_examples)

    @staticmethod
    def of_sizes(flat: Indices, sizes: Indices, n_examples: int) -> Assigned:
        """From the rows of all clients, one after another, and how many each one holds."""
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return Assigned(flat, offsets, n_examples - int(offsets[-1]))

    @property
    def size(self) -> int:
        return len(self.offsets) - 1

    def rows(self, client: int) -> Indices:
        return self.flat[self.offsets[client] : self.offsets[client + 1]]


@dataclass(frozen=True)
class Drawn:
    """Every client draws ``examples`` rows from its own key, so nothing is stored per client.

    ``pools`` are the rows by class, ``concentrations`` the Dirichlet law of a client's label mix
    (one pool of all rows: uniform). A client's rows are all different, so a class that is smaller
    than the client's share of it gives fewer; two clients may hold the same row.
    """

    size: int
    examples: int
    pools: tuple[Indices, ...]
    concentrations: NDArray[np.float64]
    key: Key
    dropped: int = 0

    def rows(self, client: int) -> Indices:
        key = self.key.fold("client", client)
        edges = np.cumsum(dirichlet(self.concentrations, key.fold("mix")))
        draws = key.fold("classes").uniform((self.examples,)).numpy().astype(np.float64)
        classes = np.searchsorted(edges[:-1], draws, side="right")
        counts = np.bincount(classes, minlength=len(self.pools))
        found = [
            self.pools[c][key.fold("rows", c).choice(len(self.pools[c]), n)]
            for c in np.flatnonzero(counts).tolist()
            if (n := min(int(counts[c]), len(self.pools[c])))
        ]
        return np.sort(np.concatenate(found))


def dirichlet(concentrations: NDArray[np.float64], key: Key) -> NDArray[np.float64]:
    """One draw of a Dirichlet law [C]: gamma variates over their sum, in logarithms, so that tiny
    concentrations give one class instead of 0/0."""
    logs = log_gamma_variates(concentrations, key)
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def log_gamma_variates(shapes: NDArray[np.float64], key: Key) -> NDArray[np.float64]:
    """Logarithms of gamma variates of these shapes [C], scale 1.

    Source: Marsaglia and Tsang, "A simple method for generating gamma variables" (2000), on shape
    + 1, then times U^(1 / shape) (their section 6), which serves every shape > 0. Departure: the
    normal values come from the key's table of 65,536 quantiles.
    """
    d = shapes + 1 - 1 / 3
    x_TC = key.fold("normal").normal((_TRIES, len(shapes))).numpy().astype(np.float64)
    v_TC = (1 + x_TC / np.sqrt(9 * d)) ** 3
    log_v_TC = np.log(np.maximum(v_TC, 1e-300))
    log_u_TC = np.log(_open_uniform(key.fold("accept"), _TRIES * len(shapes)))
    bound_TC = x_TC**2 / 2 + d * (1 - v_TC + log_v_TC)
    accepted_TC = (v_TC > 0) & (log_u_TC.reshape(x_TC.shape) < bound_TC)
    assert accepted_TC.any(axis=0).all()
    log_v = log_v_TC[accepted_TC.argmax(axis=0), np.arange(len(shapes))]
    log_u = np.log(_open_uniform(key.fold("boost"), len(shapes)))
    return np.asarray(np.log(d) + log_v + log_u / shapes)


def _open_uniform(key: Key, n: int) -> NDArray[np.float64]:
    """Uniform values strictly between 0 and 1."""
    return key.uniform((n,)).numpy().astype(np.float64) + 2.0**-25
