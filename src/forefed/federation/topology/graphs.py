"""Graphs of nodes that talk to one another, and the weights by which they average.

Weights are those of Metropolis (Xiao, Boyd, Kim, "Distributed average consensus with
least-mean-square deviation", J. Parallel Distrib. Comput. 2007, eq. 3): for neighbours i, j

    W_ij = 1 / (1 + max(deg_i, deg_j)),    W_ii = 1 - sum_j W_ij

symmetric and doubly stochastic on every graph, so mixing keeps the mean of all models. (Weights
1 / (1 + deg_i) on an irregular graph lead to a mean weighted by degree.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.settings import Choice, Registry

Edge = tuple[int, int]
"""Two unlike nodes, the smaller number first."""


class Graph(Choice):
    """Base: who hears whom, both ways."""

    @abstractmethod
    def edges(self, n: int, key: Key) -> list[Edge]:
        """The edges among nodes 0 to n - 1, each once, in ascending order.

        Raises:
            UserError: there is no such graph of n nodes.
        """


class Ring(Graph):
    """Every node has two neighbours."""

    kind: Literal["ring"] = "ring"

    def edges(self, n: int, key: Key) -> list[Edge]:
        return ordered((i, (i + 1) % n) for i in range(n))


class Grid(Graph):
    """Rows and columns as equal as n allows; up to four neighbours, fewer at the border."""

    kind: Literal["grid"] = "grid"

    def edges(self, n: int, key: Key) -> list[Edge]:
        wide = n // next(rows for rows in range(int(n**0.5), 0, -1) if n % rows == 0)
        beside = [(i, i + 1) for i in range(n - 1) if (i + 1) % wide]
        return ordered([*beside, *((i, i + wide) for i in range(n - wide))])


class Exponential(Graph):
    """Neighbours at distances 1, 2, 4, ... on a ring, both ways: about 2 log2(n) of them."""

    kind: Literal["exponential"] = "exponential"
    source: ClassVar[str] = "Ying et al., arXiv 2110.13363 (there one way)"

    def edges(self, n: int, key: Key) -> list[Edge]:
        hops = [1 << k for k in range(n.bit_length()) if 1 << k < n]
        return ordered((i, (i + hop) % n) for i in range(n) for hop in hops)


class RandomRegular(Graph):
    """A graph drawn once for the run, in which every node has ``degree`` neighbours."""

    kind: Literal["random_regular"] = "random_regular"
    degree: Annotated[int, Field(ge=2)] = 4
    source: ClassVar[str] = "Steger and Wormald, Combin. Probab. Comput. 8 (1999)"

    def edges(self, n: int, key: Key) -> list[Edge]:
        if self.degree >= n or self.degree * n % 2:
            raise UserError(
                f"topology.graph.degree = {self.degree}: no graph of {n} nodes has so many "
                "neighbours everywhere (fewer than nodes, and an even number of ends in all)"
            )
        tries = (self._drawn(n, key.fold("regular", attempt)) for attempt in range(1000))
        return next(found for found in tries if found and connected(n, found))

    def _drawn(self, n: int, key: Key) -> list[Edge]:
        """Free ends are paired at random while that makes no loop and no second edge; none if ends
        are left over."""
        found: set[Edge] = set()
        ends = [i for i in range(n) for _ in range(self.degree)]
        for turn in range(n * self.degree):
            order = key.fold(turn).permutation(len(ends))
            left: list[int] = []
            for a, b in zip(order[::2].tolist(), order[1::2].tolist(), strict=True):
                edge = (min(ends[a], ends[b]), max(ends[a], ends[b]))
                if edge[0] == edge[1] or edge in found:
                    left += edge
                else:
                    found.add(edge)
            if not left:
                return ordered(found)
            if not any(x != y and (min(x, y), max(x, y)) not in found for x in left for y in left):
                return []
            ends = left
        return []


class Full(Graph):
    """Everybody hears everybody."""

    kind: Literal["full"] = "full"

    def edges(self, n: int, key: Key) -> list[Edge]:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]


class Given(Graph):
    """The edges that are named."""

    kind: Literal["given"] = "given"
    edge: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...]
    """Pairs of nodes, from 0: [[0, 1], [1, 2]]."""

    def edges(self, n: int, key: Key) -> list[Edge]:
        wrong = next((e for e in self.edge if e[0] == e[1] or max(e) >= n), None)
        if wrong is not None:
            raise UserError(
                f"topology.graph.edge: {list(wrong)} is no pair of two of the nodes 0 to {n - 1}"
            )
        return ordered(self.edge)


GRAPHS: Registry[Graph] = Registry(
    "topology.graph", [Ring, Grid, Exponential, RandomRegular, Full, Given]
)


def ordered(pairs: Iterable[tuple[int, int]]) -> list[Edge]:
    """Every edge once, the smaller node first, in ascending order; no loops."""
    return sorted({(min(p), max(p)) for p in pairs if p[0] != p[1]})


def neighbours(n: int, edges: Iterable[Edge]) -> list[list[int]]:
    """The neighbours of every node, in ascending order."""
    found: list[list[int]] = [[] for _ in range(n)]
    for i, j in edges:
        found[i].append(j)
        found[j].append(i)
    return [sorted(some) for some in found]


def connected(n: int, edges: Iterable[Edge]) -> bool:
    """Is there a way from every node to every other?"""
    beside, seen, at = neighbours(n, edges), {0}, [0]
    while at:
        for j in beside[at.pop()]:
            if j not in seen:
                seen.add(j)
                at.append(j)
    return len(seen) == n


def metropolis(beside: Sequence[Sequence[int]]) -> list[dict[int, float]]:
    """The weight W_ij of every neighbour j of every node i; what is left of 1 is its own."""
    return [{j: 1 / (1 + max(len(some), len(beside[j]))) for j in some} for some in beside]
