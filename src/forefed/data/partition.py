"""Splits the training examples among clients.

The laws of ``iid``, ``dirichlet``, ``pathological``, ``shards`` and ``natural`` are Flower's
(flwr-datasets), over a table of two small columns in memory; their seed comes from the key, and
each uses a generator of its own. ``bootstrap`` is ours: a population of any size at no cost.
"""

from __future__ import annotations

import io
import warnings
from abc import abstractmethod
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.settings import Choice, Registry
from forefed.data.examples import Indices
from forefed.data.shares import Assigned, Drawn, Shares

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Labels = NDArray[np.int64]
Clients = Annotated[int, Field(ge=1, le=10**6)]
Alpha = Annotated[float, Field(gt=0, le=1e6)]  # larger ones overflow, and 1e6 is even enough


class Partition(Choice):
    """Base of the partitions."""

    @abstractmethod
    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
        """Who holds which example.

        Args:
            labels: class [N] of every training example; zeros for language modelling.
            natural_ids: owner of every training example, where known.
            key: decides everything that is random.

        Raises:
            UserError: these examples cannot be split like this; says what to change.
        """


class Iid(Partition):
    """Shuffled and dealt out evenly."""

    kind: Literal["iid"] = "iid"
    source: ClassVar[str] = "flwr-datasets IidPartitioner"
    clients: Clients = 100

    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
        from flwr_datasets.partitioner import IidPartitioner

        _check_clients(self.clients, len(labels))
        # The partitioner cuts the rows in their order; the shuffling is in _shares.
        return _shares(IidPartitioner(self.clients), labels, key)


class Dirichlet(Partition):
    """Every class divided among the clients by a Dirichlet draw; small alpha: few classes each."""

    kind: Literal["dirichlet"] = "dirichlet"
    source: ClassVar[str] = "arXiv 1905.12022; flwr-datasets DirichletPartitioner"
    clients: Clients = 100
    alpha: Alpha = 1.0
    min_size: Annotated[int, Field(ge=0)] = 0
    """Every client holds this many examples at least."""

    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
        from flwr_datasets.partitioner import DirichletPartitioner

        _check_clients(self.clients, len(labels))
        # Without "self balancing", which would cut off clients above the mean size and so bend the
        # law that alpha names. (numpy draws tiny alphas by stick breaking: no 0/0.)
        partitioner = DirichletPartitioner(
            self.clients,
            "label",
            self.alpha,
            self.min_size,
            self_balancing=False,
            seed=key.fold("flower").value,
        )
        remedy = (
            f"no draw gave each of {self.clients} clients {self.min_size} or more of "
            f"{len(labels)} examples at alpha = {self.alpha:g}; raise partition.alpha, lower "
            "partition.clients, or lower partition.min_size (0 allows empty clients)"
        )
        return _shares(partitioner, labels, key, remedy)


class Pathological(Partition):
    """Each client holds a few classes only, each class cut evenly among its clients."""

    kind: Literal["pathological"] = "pathological"
    source: ClassVar[str] = "arXiv 2102.02079; flwr-datasets PathologicalPartitioner"
    clients: Clients = 100
    classes_per_client: Annotated[int, Field(ge=1)] = 2

    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
        from flwr_datasets.partitioner import PathologicalPartitioner

        _check_clients(self.clients, len(labels))
        known = len(np.unique(labels))
        if self.classes_per_client > known:
            raise UserError(
                f"partition.classes_per_client = {self.classes_per_client}, but the training "
                f"examples have {known} class(es); lower it"
            )
        partitioner = PathologicalPartitioner(
            self.clients,
            "label",
            self.classes_per_client,
            class_assignment_mode="first-deterministic",  # no class without a client
            seed=key.fold("flower").value,
        )
        remedy = (
            "a class has fewer examples than clients that shall hold it; lower partition.clients "
            "or partition.classes_per_client"
        )
        return _shares(partitioner, labels, key, remedy)


class Shards(Partition):
    """Sorted by class, cut into equal shards, and each client gets a few of them."""

    kind: Literal["shards"] = "shards"
    source: ClassVar[str] = "arXiv 1602.05629; flwr-datasets ShardPartitioner"
    clients: Clients = 100
    shards_per_client: Annotated[int, Field(ge=1)] = 2

    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
        from flwr_datasets.partitioner import ShardPartitioner

        count = self.clients * self.shards_per_client
        if count > len(labels):
            raise UserError(
                f"partition: {self.clients} clients of {self.shards_per_client} shards need "
                f"{count} examples, and there are {len(labels)}; lower partition.clients or "
                "partition.shards_per_client"
            )
        # Flower's shards are equal and leave the remainder to nobody. So the shards are cut here,
        # equal to one example, and Flower deals out their numbers.
        order = key.fold("order").permutation(len(labels))
        shards = np.array_split(order[np.argsort(labels[order], kind="stable")], count)
        partitioner = ShardPartitioner(
            self.clients,
            "label",
            num_shards_per_partition=self.shards_per_client,
            shard_size=1,
            seed=key.fold("flower").value,
        )
        dealt = _run(partitioner, np.arange(count), np.arange(count), "")
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

    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
        from flwr_datasets.partitioner import NaturalIdPartitioner

        if natural_ids is None:
            raise UserError(
                "partition.column: this source names no owners; name the column that does"
            )
        order = np.arange(len(labels))
        found = _run(NaturalIdPartitioner("label"), order, np.array(natural_ids), "")
        large = [rows for rows in found if len(rows) >= self.min_size]
        if not large:
            raise UserError(
                f"partition.min_size = {self.min_size}: the largest of {len(found)} owners has "
                f"{max(map(len, found))} examples; lower it"
            )
        if self.clients is not None and self.clients < len(large):
            large = [large[i] for i in key.fold("owners").choice(len(large), self.clients)]
        return Assigned.of(large, len(labels))


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

    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
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
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    """Who may take part, as registered; client 0, 1, ... in this order."""
    join_s: Annotated[float, Field(gt=0)] = 120.0
    """How long a round waits for sites: the first one for all, later ones for ``cohort_min``."""

    @property
    def clients(self) -> int:
        return len(self.names)

    def split(self, labels: Labels, natural_ids: list[str] | None, key: Key) -> Shares:
        return Assigned.of([np.arange(0) for _ in self.names], 0)  # these rows are for testing


PARTITIONS: Registry[Partition] = Registry(
    "partition", [Iid, Dirichlet, Pathological, Shards, Natural, Bootstrap, Sites]
)


def _shares(partitioner: Partitioner, labels: Labels, key: Key, remedy: str = "") -> Assigned:
    """What the partitioner makes of the examples in a random order."""
    order = key.fold("order").permutation(len(labels))
    return Assigned.of(_run(partitioner, order, labels[order], remedy), len(labels))


def _run(
    partitioner: Partitioner, rows: Indices, column: NDArray[Any], remedy: str
) -> list[Indices]:
    """Every client's rows, by Flower's partitioner over the columns "row" and "label".

    Raises:
        UserError: with this remedy, when the partitioner gives up.
    """
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"row": rows, "label": column})
    try:
        # It warns at every new try and shows a progress bar; what matters comes as an exception.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return [
                np.array(partitioner.load_partition(c)["row"][:], dtype=np.int64)
                for c in range(partitioner.num_partitions)
            ]
    except ValueError as error:
        if not remedy:
            raise
        raise UserError(f"partition: {remedy}") from error


def _check_clients(clients: int, examples: int) -> None:
    if clients > examples:
        raise UserError(
            f"partition.clients = {clients} is more than the {examples} training examples; lower "
            'it, or let clients share examples (partition.kind = "bootstrap")'
        )
