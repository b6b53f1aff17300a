"""Which units each client of the cohort trains.

Source: SPRY (arXiv 2405.15551) section 3.1 for the cyclic map; the contiguous map is ours: a client
whose units lie together and late pays a tangent only from its lowest unit on, while a cyclic map
makes nearly every client pay from the first layer.

An assignment maps each of the M positions of a cohort to unit numbers; every unit is assigned at
least once and every position has at least one unit, for any U and M. Which client takes which
position is drawn anew every round (``rotate``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core.keys import Key
from forefed.core.settings import Choice, Registry
from forefed.core.types import Unit

Positions = list[tuple[int, ...]]
"""For every position the numbers of its units, ascending."""


class Assign(Choice):
    """Base of the maps."""

    @abstractmethod
    def names(self, units: Sequence[Unit], clients: int, key: Key) -> list[tuple[str, ...]]:
        """The parameter names each client of the cohort trains, in the order of the cohort.

        ``key`` is the round's; it decides the rotation.
        """


class Everything(Assign):
    """Every client trains every unit (FedAvg)."""

    kind: Literal["everything"] = "everything"

    def names(self, units: Sequence[Unit], clients: int, key: Key) -> list[tuple[str, ...]]:
        return [_names(units, range(len(units)))] * clients


class SplitAssign(Assign):
    """Base of the maps that split the units among the clients."""

    head: Literal["everyone", "unit"] = "everyone"
    """"everyone": each client also trains the head (its gradient is exact and cheap);
    "unit": the head is one unit among the others, as published."""
    rotate: bool = True
    """Draw anew every round which client takes which position; False: fixed by cohort order."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Clients per unit at least: more of them, more units per client and less noise per unit."""

    renamed: ClassVar[Mapping[str, str]] = {"copies": "replicas"}

    def names(self, units: Sequence[Unit], clients: int, key: Key) -> list[tuple[str, ...]]:
        shared = [i for i, u in enumerate(units) if u.is_head and self.head == "everyone"]
        split = [i for i in range(len(units)) if i not in shared]
        if not split:
            return [_names(units, shared)] * clients
        sizes = [units[i].size for i in split]
        places = max(1, clients // self.replicas)
        positions = self.positions(sizes, places)
        order = key.fold("rotate").permutation(clients) if self.rotate else range(clients)
        return [
            _names(units, sorted([split[i] for i in positions[int(p) % places]] + shared))
            for p in order
        ]

    @abstractmethod
    def positions(self, sizes: Sequence[int], m: int) -> Positions:
        """Units by position, for units of these sizes and ``m`` positions."""


class Cyclic(SplitAssign):
    """Units dealt out like cards, by count, as published."""

    kind: Literal["cyclic"] = "cyclic"
    source: ClassVar[str] = "SPRY, arXiv 2405.15551, section 3.1"

    def positions(self, sizes: Sequence[int], m: int) -> Positions:
        units: list[set[int]] = [set() for _ in range(m)]
        for j in range(max(len(sizes), m)):
            units[j % m].add(j % len(sizes))
        return [tuple(sorted(us)) for us in units]


class Contiguous(SplitAssign):
    """Runs of neighbouring units, balanced by dimension."""

    kind: Literal["contiguous"] = "contiguous"

    def positions(self, sizes: Sequence[int], m: int) -> Positions:
        if len(sizes) >= m:
            return balanced_runs(sizes, m)
        counts = replicas([size + 1 for size in sizes], m)
        return [(u,) for u, count in enumerate(counts) for _ in range(count)]


def balanced_runs(sizes: Sequence[int], m: int) -> Positions:
    """Cut ``sizes`` into exactly ``m`` runs so that the largest sum is as small as it can be.

    Bisection on the bound for which greedy filling needs at most ``m`` runs; then the largest runs
    are halved until there are ``m``.
    """
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(sizes, middle)) <= m:
            high = middle
        else:
            low = middle + 1
    runs = _fill(sizes, low)
    while len(runs) < m:
        largest = max(
            (run for run in runs if len(run) > 1), key=lambda run: sum(sizes[i] for i in run)
        )
        cut = min(
            range(1, len(largest)),
            key=lambda c: abs(
                sum(sizes[i] for i in largest[:c]) - sum(sizes[i] for i in largest[c:])
            ),
        )
        at = runs.index(largest)
        runs[at : at + 1] = [largest[:cut], largest[cut:]]
    return [tuple(run) for run in runs]


def replicas(weights: Sequence[float], m: int) -> list[int]:
    """How many of ``m`` positions each unit gets: at least 1 each, proportional to sqrt(weight).

    Minimises sum(weight / replicas) (with weight = (d_u + 1)||g_u||^2 the variance of the
    aggregate), by largest remainders.
    """
    roots = [w**0.5 for w in weights]
    shares = [m * root / sum(roots) for root in roots]
    counts = [max(1, int(share)) for share in shares]
    while sum(counts) < m:
        most = max(range(len(counts)), key=lambda u: shares[u] - counts[u])
        counts[most] += 1
    while sum(counts) > m:
        least = min(
            (u for u in range(len(counts)) if counts[u] > 1), key=lambda u: shares[u] - counts[u]
        )
        counts[least] -= 1
    return counts


def _fill(sizes: Sequence[int], bound: int) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    total = 0
    for i, size in enumerate(sizes):
        if runs[-1] and total + size > bound:
            runs.append([])
            total = 0
        runs[-1].append(i)
        total += size
    return runs


def _names(units: Sequence[Unit], numbers: Sequence[int] | range) -> tuple[str, ...]:
    return tuple(name for i in numbers for name in units[i].params)


ASSIGNS: Registry[Assign] = Registry("assign", [Everything, Contiguous, Cyclic])
