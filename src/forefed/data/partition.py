"""Splits the training examples among clients.

The laws of ``iid``, ``dirichlet``, ``pathological``, ``shards`` and ``natural`` are Flower's, and
so are their bits (flwr-datasets 0.6.1; tests compare): each uses a generator of its own, whose seed
comes from the key. Departures: a pathological split covers every class, and shards are equal to one
example. ``bootstrap`` is ours: a population of any size at no cost.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from pydantic import Field

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.names import Name
from forefed.core.settings import Choice, Registry
from forefed.data.examples import Indices
from forefed.data.shares import Assigned, Drawn, Shares

Labels = NDArray[np.int64]
Owners = list[str | None] | None
Clients = Annotated[int, Field(ge=1, le=10**6)]
Alpha = Annotated[float, Field(gt=0, le=1e6)]  # larger ones overflow, and 1e6 is even enough


class Partition(Choice):
    """Base of the partitions."""

    @abstractmethod
    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        """Who holds which example.

        Args:
            labels: class [N] of every training example; zeros for language modelling.
            natural_ids: owner of every training example, where the source knows owners.
            key: decides everything that is random.

        Raises:
            UserError: these examples cannot be split like this; says what to change.
        """


class Iid(Partition):
    """Shuffled and dealt out evenly."""

    kind: Literal["iid"] = "iid"
    source: ClassVar[str] = "flwr-datasets IidPartitioner"
    clients: Clients = 100

    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        _check_clients(self.clients, len(labels))
        return Assigned.of(np.array_split(_order(labels, key), self.clients), len(labels))


class Dirichlet(Partition):
    """Every class divided among the clients by a Dirichlet draw; small alpha: few classes each."""

    kind: Literal["dirichlet"] = "dirichlet"
    source: ClassVar[str] = "arXiv 1905.12022; flwr-datasets DirichletPartitioner"
    clients: Clients = 100
    alpha: Alpha = 1.0
    min_size: Annotated[int, Field(ge=0)] = 0
    """Every client holds this many examples at least."""
    tries: ClassVar[int] = 10
    """Further draws, where one gives some client too few."""

    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        _check_clients(self.clients, len(labels))
        order, generator = _order(labels, key), _generator(key)
        classes = [order[labels[order] == c] for c in np.unique(labels)]
        # (numpy draws tiny alphas by stick breaking: no 0/0.)
        for _ in range(1 + self.tries):
            shares: list[list[Indices]] = [[] for _ in range(self.clients)]
            for rows in classes:
                parts = generator.dirichlet(np.full(self.clients, self.alpha))
                cuts = (np.cumsum(parts) * len(rows)).astype(int)[:-1]
                for share, part in zip(shares, np.split(rows, cuts), strict=True):
                    share.append(part)
            sizes = [sum(map(len, share)) for share in shares]
            if min(sizes) >= self.min_size:
                return Assigned.of([np.concatenate(share) for share in shares], len(labels))
        raise UserError(
            f"partition: no draw gave each of {self.clients} clients {self.min_size} or more of "
            f"{len(labels)} examples at alpha = {self.alpha:g}; raise partition.alpha, lower "
            "partition.clients, or lower partition.min_size (0 allows empty clients)"
        )


class Pathological(Partition):
    """Each client holds a few classes only, each class cut evenly among its clients."""

    kind: Literal["pathological"] = "pathological"
    source: ClassVar[str] = "arXiv 2102.02079; flwr-datasets PathologicalPartitioner"
    clients: Clients = 100
    classes_per_client: Annotated[int, Field(ge=1)] = 2
    uncovered: Literal["refuse", "drop"] = "refuse"
    """What happens to classes where the clients together hold fewer than there are: "drop" leaves
    their rows to nobody, which is said and counted."""

    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        _check_clients(self.clients, len(labels))
        known = np.unique(labels).tolist()
        if self.classes_per_client > len(known):
            raise UserError(
                f"partition.classes_per_client = {self.classes_per_client}, but the training "
                f"examples have {len(known)} class(es); lower it"
            )
        order = _order(labels, key)
        holders: dict[int, list[int]] = {c: [] for c in known}
        for client, held in enumerate(self._classes_of_clients(known, labels, _generator(key))):
            for c in held:
                holders[c].append(client)
        shares: list[list[Indices]] = [[order[:0]] for _ in range(self.clients)]
        for c, clients in holders.items():
            rows = order[labels[order] == c]
            if len(clients) > len(rows):
                raise UserError(
                    f"partition: a class has {len(rows)} examples, fewer than the {len(clients)} "
                    "clients that shall hold it; lower partition.clients or "
                    "partition.classes_per_client"
                )
            parts = np.array_split(rows, len(clients)) if clients else []
            for client, part in zip(clients, parts, strict=True):
                shares[client].append(part)
        return Assigned.of([np.concatenate(share) for share in shares], len(labels))

    def _classes_of_clients(
        self, known: list[int], labels: Labels, generator: Generator
    ) -> list[list[int]]:
        """Client i begins with class i; classes beyond the clients come next, in turn, so that each
        has a holder; what is free then is drawn."""
        room = self.clients * self.classes_per_client
        if room < len(known) and self.uncovered == "refuse":
            lost = int(np.isin(labels, known[room:]).sum())
            raise UserError(
                f"partition: {self.clients} clients of {self.classes_per_client} classes cannot "
                f"hold all {len(known)} classes ({lost:,} of {len(labels):,} examples would "
                "belong to nobody); raise partition.clients or partition.classes_per_client, or "
                'set partition.uncovered = "drop"'
            )
        found = [[known[i % len(known)]] for i in range(self.clients)]
        for i, c in enumerate(known[self.clients : room]):
            found[i % self.clients].append(c)
        for held in found:
            while len(held) < self.classes_per_client:
                c = int(generator.choice(known, size=1)[0])
                if c not in held:
                    held.append(c)
        return found


class Shards(Partition):
    """Sorted by class, cut into equal shards, and each client gets a few of them."""

    kind: Literal["shards"] = "shards"
    source: ClassVar[str] = "arXiv 1602.05629; flwr-datasets ShardPartitioner"
    clients: Clients = 100
    shards_per_client: Annotated[int, Field(ge=1)] = 2

    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        count = self.clients * self.shards_per_client
        if count > len(labels):
            raise UserError(
                f"partition: {self.clients} clients of {self.shards_per_client} shards need "
                f"{count} examples, and there are {len(labels)}; lower partition.clients or "
                "partition.shards_per_client"
            )
        # Flower's shards are equal and leave the remainder to nobody; these differ by one example.
        order = _order(labels, key)
        shards = np.array_split(order[np.argsort(labels[order], kind="stable")], count)
        dealt = _generator(key).permutation(count).reshape(self.clients, -1)
        return Assigned.of([np.concatenate([shards[i] for i in d]) for d in dealt], len(labels))


class Natural(Partition):
    """One client per owner, as a column of the table names them."""

    kind: Literal["natural"] = "natural"
    source: ClassVar[str] = "flwr-datasets NaturalIdPartitioner"
    column: str | None = None
    """The column of owners; None: the source's own (the docstrings' module)."""
    min_size: Annotated[int, Field(ge=1)] = 1
    """Owners of fewer examples are left out."""
    clients: Clients | None = None
    """At most this many owners, drawn by the key; None: all."""
    unowned: Literal["refuse", "drop"] = "refuse"
    """What happens to rows without an owner: "drop" leaves them to nobody, said and counted."""

    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        if natural_ids is None:
            raise UserError(
                "partition.column: this source names no owners; name the column that does"
            )
        names = sorted(dict.fromkeys(x for x in natural_ids if x is not None))
        number = {name: i for i, name in enumerate(names)}
        owned = np.flatnonzero(np.fromiter((x is not None for x in natural_ids), dtype=bool))
        missing = len(labels) - len(owned)
        if missing and (self.unowned == "refuse" or not len(owned)):
            column = f"column '{self.column}'" if self.column else "the source's own column"
            raise UserError(
                f"partition.column: {missing:,} of {len(labels):,} training rows have no owner in "
                f'{column}; mend or remove them, or set partition.unowned = "drop"'
            )
        owners = (number[x] for x in natural_ids if x is not None)
        owner_of = np.fromiter(owners, np.int32, len(owned))
        sizes = np.bincount(owner_of, minlength=len(number))
        large = np.flatnonzero(sizes >= self.min_size)
        if not len(large):
            raise UserError(
                f"partition.min_size = {self.min_size}: the largest of {len(sizes)} owners has "
                f"{sizes.max()} examples; lower it"
            )
        if self.clients is not None and self.clients < len(large):
            large = large[key.fold("owners").choice(len(large), self.clients)]
        order = np.argsort(owner_of, kind="stable")
        if len(large) < len(sizes):
            chosen = np.zeros(len(sizes), dtype=bool)
            chosen[large] = True
            order = order[chosen[owner_of[order]]]
        return Assigned.of_sizes(owned[order], sizes[large], len(labels))


class Bootstrap(Partition):
    """Any number of clients: each draws its examples when it is looked up, as others may too.

    A client's label mix is a Dirichlet draw around the data's own mix p, with concentrations
    alpha * classes * p (alpha per class where classes are equally frequent); without alpha its
    examples are a uniform draw.
    """

    kind: Literal["bootstrap"] = "bootstrap"
    source: ClassVar[str] = "arXiv 1909.06335 for the label mix"
    clients: Annotated[int, Field(ge=1, le=10**9)] = 1000
    examples_per_client: Annotated[int, Field(ge=1)] = 50
    alpha: Alpha | None = None

    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        if self.examples_per_client > len(labels):
            raise UserError(
                f"partition.examples_per_client = {self.examples_per_client}, but there are "
                f"{len(labels)} training examples; lower it"
            )
        pools: tuple[Indices, ...] = (np.arange(len(labels)),)
        if self.alpha is not None:
            pools = tuple(np.flatnonzero(labels == c) for c in np.unique(labels))
        frequency = np.array([len(pool) for pool in pools]) / len(labels)
        concentrations = (self.alpha or 1.0) * len(pools) * frequency
        return Drawn(self.clients, self.examples_per_client, pools, concentrations, key)


class Sites(Partition):
    """The sites of a deployment hold the training rows; the source has test rows only."""

    kind: Literal["sites"] = "sites"
    names: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Who may take part, as registered; client 0, 1, ... in this order."""
    join_s: Annotated[float, Field(gt=0)] = 120.0
    """How long a round waits for sites: the first one for all, later ones for ``cohort_min``."""

    @property
    def clients(self) -> int:
        return len(self.names)

    def split(self, labels: Labels, natural_ids: Owners, key: Key) -> Shares:
        return Assigned.of([np.arange(0) for _ in self.names], 0)  # these rows are for testing


PARTITIONS: Registry[Partition] = Registry(
    "partition", [Iid, Dirichlet, Pathological, Shards, Natural, Bootstrap, Sites]
)


def _order(labels: Labels, key: Key) -> Indices:
    """The examples in a random order."""
    return key.fold("order").permutation(len(labels))


def _generator(key: Key) -> Generator:
    """Numpy's default generator, as Flower's partitioners use it."""
    return Generator(PCG64(key.fold("flower").value))


def _check_clients(clients: int, examples: int) -> None:
    if clients > examples:
        raise UserError(
            f"partition.clients = {clients} is more than the {examples} training examples; lower "
            'it, or let clients share examples (partition.kind = "bootstrap")'
        )
