"""From settings to clients with data: the whole path in one function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import Json
from forefed.data.examples import Examples
from forefed.data.partition import Natural, Partition, Sites
from forefed.data.population import Population
from forefed.data.rows import Rows
from forefed.data.settings import DataSettings
from forefed.data.sources import Table
from forefed.data.tasks import TextTask


@dataclass(frozen=True)
class Prepared:
    """The clients, the global test set, and what a record states about them.

    ``label_names`` is empty where no classes are learned; ``counts`` is explained at
    ``tasks.Encoded``; ``notes`` are sentences that a person should read before training.
    """

    population: Population
    test: Examples
    label_names: tuple[str, ...]
    counts: dict[str, int]
    provenance: Json
    notes: tuple[str, ...] = ()


def prepare(
    settings: DataSettings,
    partition: Partition,
    tokenizer: Any,
    key: Key,
    cache_dir: Path | None,
    whole: int | None = None,
) -> Prepared:
    """Read, tokenise and split.

    Args:
        tokenizer: the model's, from Hugging Face transformers.
        key: of the partition and the clients' own test splits, and without ``split_seed`` of the
            limit and the held-out rows too.
        cache_dir: where tokens are kept between runs; None: nowhere.
        whole: tokens that are kept of a text, of which the model reads the first; None: no more.

    Raises:
        UserError: anything wrong with the data or the settings, before any training.
    """
    table, unlabelled, split = chosen_rows(settings, partition, key, cache_dir)
    encoded = settings.task.encode(
        table,
        tokenizer,
        settings.max_length,
        settings.test_fraction,
        split,
        cache_dir,
        partition.column if isinstance(partition, Natural) else None,
        whole,
    )
    train = encoded.train
    classes = settings.task.strata(train.labels)
    shares = partition.split(classes, encoded.natural_ids, key.fold("partition"))
    population = Population(
        partition.kind,
        train,
        shares,
        key.fold("population"),
        settings.client_test_fraction,
        encoded.label_names,
    )
    unheld, notes = shares.dropped, list(encoded.notes)
    if unheld:
        held_by = "the partition's own settings leave them out"
        notes.append(f"{unheld:,} of {len(train):,} training rows belong to no client: {held_by}")
    return Prepared(
        population,
        encoded.test,
        encoded.label_names,
        {**encoded.counts, "unlabelled": unlabelled, "unheld": unheld},
        {**encoded.provenance, "notes": notes},
        tuple(notes),
    )


def chosen_rows(
    settings: DataSettings, partition: Partition, key: Key, cache_dir: Path | None
) -> tuple[Table, int, Key]:
    """The rows that a run uses, how many were left out for want of a label, and the key that draws
    the held-out ones."""
    split = key if settings.split_seed is None else Key(settings.split_seed).fold("data")
    table, unlabelled = load_table(settings, cache_dir)
    if settings.limit is not None:
        test = table.test and _limited(table.test, settings.limit, split.fold("limit", "test"))
        rows = _limited(table.rows, settings.limit, split.fold("limit", "train"))
        table = replace(table, rows=rows, test=test)
    if settings.test_on == "validation":
        table = _without_test(table, settings.task, settings.test_fraction, split)
        split = split.fold("validation")
    if isinstance(partition, Sites) and table.test is None:
        table = replace(table, test=table.rows)
    return table, unlabelled, split


def load_table(settings: DataSettings, cache_dir: Path | None = None) -> tuple[Table, int]:
    """The source's rows that have a label, and how many were left out for want of one.

    Raises:
        UserError: nothing there, not readable, or no row left.
    """
    table = settings.source.load(cache_dir)
    if settings.unlabelled == "refuse":
        return table, 0
    columns = settings.task.columns(table.rows)
    tables = [("training", table.rows)] + ([("test", table.test)] if table.test else [])
    kept = settings.task.labelled(tables, columns)
    for (place, rows), found in zip(tables, kept, strict=True):
        if not len(found):
            raise UserError(
                f"data.unlabelled: none of the {len(rows):,} {place} rows has a label, so none is "
                "left; name another column or split"
            )
    lost = sum(len(rows) - len(found) for (_, rows), found in zip(tables, kept, strict=True))
    if not lost:
        return table, 0
    rows, *test = [rows.select(found) for (_, rows), found in zip(tables, kept, strict=True)]
    note = f"{lost:,} rows without a label are left out"
    return replace(
        table, rows=rows, test=test[0] if test else None, notes=(*table.notes, note)
    ), lost


def _without_test(table: Table, task: TextTask, fraction: float, key: Key) -> Table:
    """The training rows alone: what a run with ``test_on = "test"`` tests on is gone."""
    if table.test is not None:
        return replace(table, test=None)
    rows, _ = task.hold_out(table.rows, fraction, key)
    return replace(table, rows=table.rows.select(rows))


def _limited(rows: Rows, limit: int, key: Key) -> Rows:
    return rows.select(np.sort(key.permutation(len(rows))[:limit]))
