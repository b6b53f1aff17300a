"""What a run would see of its data, before anything is tokenised or any model loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forefed.core.keys import Key
from forefed.data.columns import AUTO
from forefed.data.labels import class_notes
from forefed.data.partition import Natural, Partition, Sites
from forefed.data.prepare import chosen_rows
from forefed.data.settings import DataSettings

COUNTED = 10_000
"""Clients whose rows are counted at most."""


@dataclass(frozen=True)
class Preview:
    """``columns``: by the setting that names them; ``guessed``: the settings that named none.
    ``given``: the source has test rows of its own. ``clients``: how many; ``sizes``: training rows
    of each client, of the first 10,000 at most."""

    train: int
    test: int
    given: bool
    columns: dict[str, list[str]]
    guessed: frozenset[str]
    label_names: tuple[str, ...]
    clients: int
    sizes: NDArray[np.int64]
    notes: tuple[str, ...]


def preview(
    settings: DataSettings, partition: Partition, key: Key, cache_dir: Path | None
) -> Preview:
    """Read and split as ``prepare`` does, without a tokeniser.

    Args:
        key: as for ``prepare``.

    Raises:
        UserError: what ``prepare`` would say of the rows, the columns and the split.
    """
    table, _, split = chosen_rows(settings, partition, key, cache_dir)
    column = partition.column if isinstance(partition, Natural) else None
    there = settings.task.arrange(table, settings.test_fraction, split, column)
    train, test = there.train.labels, there.test.labels
    nobody = np.zeros(len(there.train), np.int64)
    classes = nobody if train is None else settings.task.strata(train)
    shares = partition.split(classes, there.natural_ids, key.fold("partition"))
    notes = list(there.notes)
    one = train is not None and train.ndim == 1 and train.dtype.kind == "i"
    if there.label_names and one and train is not None and test is not None:
        notes += class_notes(there.label_names, train, test)
    if shares.dropped:
        notes.append(f"{shares.dropped:,} training rows belong to no client")
    counted = 0 if isinstance(partition, Sites) else min(shares.size, COUNTED)
    return Preview(
        len(there.train),
        len(there.test),
        there.given,
        there.columns,
        frozenset(n for n in there.columns if getattr(settings.task, n, None) == AUTO),
        there.label_names,
        shares.size,
        np.array([len(shares.rows(c)) for c in range(counted)], dtype=np.int64),
        tuple(notes),
    )
