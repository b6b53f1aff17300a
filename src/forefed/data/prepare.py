"""From settings to clients with data: the whole path in one function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forefed.core.keys import Key
from forefed.core.types import Json
from forefed.data.examples import Examples
from forefed.data.partition import Natural, Partition
from forefed.data.population import Population
from forefed.data.settings import DataSettings

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Prepared:
    """The clients, the global test set, and what a record states about them.

    ``label_names`` is empty for a language model; ``counts`` is explained at ``tasks.Encoded``.
    """

    population: Population
    test: Examples
    label_names: tuple[str, ...]
    counts: dict[str, int]
    provenance: Json


def prepare(
    settings: DataSettings, partition: Partition, tokenizer: Any, key: Key, cache_dir: Path | None
) -> Prepared:
    """Read, tokenise and split.

    Args:
        tokenizer: the model's, from Hugging Face transformers.
        key: of the limit, the held-out test set, the partition and the clients' own test splits.
        cache_dir: where tokens are kept between runs; None: nowhere.

    Raises:
        UserError: anything wrong with the data or the settings, before any training.
    """
    table = settings.source.load(cache_dir)
    if settings.limit is not None:
        test = table.test and _limited(table.test, settings.limit, key.fold("limit", "test"))
        rows = _limited(table.rows, settings.limit, key.fold("limit", "train"))
        table = replace(table, rows=rows, test=test)
    encoded = settings.task.encode(
        table,
        tokenizer,
        settings.max_length,
        settings.test_fraction,
        key,
        cache_dir,
        partition.column if isinstance(partition, Natural) else None,
    )
    train = encoded.train
    labels = np.zeros(len(train), dtype=np.int64) if train.causal else np.asarray(train.labels)
    shares = partition.split(labels, encoded.natural_ids, key.fold("partition"))
    population = Population(
        partition.kind,
        train,
        shares,
        key.fold("population"),
        settings.client_test_fraction,
        encoded.label_names,
    )
    return Prepared(
        population, encoded.test, encoded.label_names, encoded.counts, encoded.provenance
    )


def _limited(rows: datasets.Dataset, limit: int, key: Key) -> datasets.Dataset:
    return rows.select(np.sort(key.permutation(len(rows))[:limit]))
