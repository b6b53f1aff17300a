"""The base of the tasks: from a table to tokenised examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.settings import Choice
from forefed.core.types import Json
from forefed.data.columns import named, texts
from forefed.data.encoding import Texts, encode_texts, end_of, tokenise
from forefed.data.examples import Examples, Indices
from forefed.data.label_column import coded, name_of
from forefed.data.labels import class_notes
from forefed.data.prompts import prompt_tokens
from forefed.data.rows import Rows
from forefed.data.sources import Table
from forefed.data.token_files import Tokenised

Head = str
"""What a model ends in, by the name of its objective (models/objectives): a class, labels, a
number, the next token, or the first and the last token of an answer."""


@dataclass(frozen=True)
class Encoded:
    """A table as tokens.

    ``natural_ids`` is the owner of every training example, where the table names owners (or a
    column of owners was asked for), None for one without. ``notes``: sentences for the user.
    ``counts``: "examples" and "test" (how many there are), and
    over both splits "empty", "truncated", "dropped", and for questions "out_of_reach"
    (``encoding.Tokenised``).
    """

    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    natural_ids: list[str | None] | None
    counts: dict[str, int]
    provenance: Json
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arranged:
    """A table's texts by what they are for. ``natural_ids``: the owner of every text to train on;
    ``given``: the table has test rows of its own, none were held out."""

    columns: dict[str, list[str]]
    label_names: tuple[str, ...]
    train: Texts
    test: Texts
    natural_ids: list[str | None] | None
    given: bool
    notes: tuple[str, ...]


Columns = str | Annotated[list[str], Field(min_length=1)]


def _different(names: list[str]) -> list[str]:
    double = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if double is not None:
        raise ValueError(f"'{double}' is named twice")
    return names


ClassNames = Annotated[list[str], Field(min_length=1), AfterValidator(_different)]
"""The classes in the order of the logits."""


class TextTask(Choice):
    """Base of the tasks."""

    head: ClassVar[Head]
    writes: ClassVar[bool] = False
    """Is it learned by a language model as it is, without a head beside it?"""

    @abstractmethod
    def columns(self, rows: Rows) -> dict[str, list[str]]:
        """The columns read, by the setting that names them; guessed where that is "auto".

        Raises:
            UserError: a column that is not there, or that cannot be guessed.
        """

    @abstractmethod
    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        """Class names (none: no classes are learned) and the texts of every (place, rows)."""

    def labelled(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> list[Indices]:
        """The rows of each table that have something to learn: all, where labels are not read."""
        return [np.arange(len(rows)) for _, rows in tables]

    def asked_texts(self, rows: Rows, columns: dict[str, list[str]]) -> list[Sequence[str]]:
        """The texts that predictions for these rows are made from, by column of ``asked``."""
        return [texts(rows, names) for names in self.asked(columns)]

    def prompts(
        self, tokenizer: Any, texts: Sequence[str], columns: Mapping[str, Sequence[str]]
    ) -> list[list[int]]:
        """The tokens after which a language model is to go on, as it was trained.

        Args:
            columns: that the run was trained on.
        """
        return prompt_tokens(tokenizer, texts)

    def dressed(self, tokenizer: Any, columns: Mapping[str, Sequence[str]]) -> Any:
        """The tokeniser as an export carries it, with what it was trained with beside its own."""
        return tokenizer

    def finish(self, examples: Examples, tokenizer: Any, names: Sequence[str]) -> Examples:
        """Examples with what the task adds to them for a model.

        Args:
            names: of the classes.
        """
        return examples

    def recipe(
        self, tokenizer: Any, columns: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> str | None:
        """Lines of a model card in the place of the objective's (``Objective.recipe``)."""
        return None

    def numpy_recipe(
        self, tokenizer: Any, columns: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> str | None:
        """The same of an ONNX graph from tokens to a language model's logits, by numpy; None: what
        ``Objective.numpy_recipe`` says."""
        return None

    def ends(self, tokenizer: Any, columns: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
        """The tokens that end what a language model says."""
        return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        """Of these columns, those of every text that a prediction is made from."""
        return [columns["text"]]

    def unlabelled(self, tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> Examples:
        """Examples to predict from, as a model was trained on them.

        Args:
            texts: by column of ``asked``, all of the same length.
        """
        return encode_texts(tokenizer, texts[0], max_length, *texts[1:])

    def strata(self, labels: Any) -> Indices:
        """A class of every example, by which a partition may skew the clients.

        Args:
            labels: of the examples, as ``Examples.labels`` has them.
        """
        plain = self.head == "classification"
        return np.asarray(labels) if plain else np.zeros(len(labels), dtype=np.int64)

    def groups(self, rows: Rows) -> Indices:
        """A number for every row, 0 upwards; rows of one number are never divided by a split."""
        return np.arange(len(rows))

    def hold_out(self, rows: Rows, fraction: float, key: Key) -> tuple[Indices, Indices]:
        """Rows to train on and rows to test on, each ascending and not empty.

        Args:
            fraction: of the groups, drawn by ``key``.
        """
        groups = self.groups(rows)
        n = int(groups.max(initial=-1)) + 1
        if n < 2:
            what = "row" if n == len(rows) else "context"
            raise UserError(f"data: {n} {what} is too few to train and to test on")
        size = min(n - 1, max(1, round(n * fraction)))
        held_out = np.isin(groups, key.fold("test").permutation(n)[:size])
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def arrange(
        self, table: Table, test_fraction: float, key: Key, id_column: str | None = None
    ) -> Arranged:
        """The texts to train on and to test on, before anything is tokenised.

        Raises:
            UserError: as ``encode``.
        """
        columns = self.columns(table.rows)
        tables = [("training", table.rows)]
        if table.test is not None:
            tables.append(("test", table.test))
            for setting, names in columns.items():
                for name in names:
                    named(table.test, name, f"data.task.{setting} (test rows)")
        owners = id_column or table.natural_id
        ids = None if owners is None else _owners(table.rows, owners)
        label_names, (train_texts, *rest) = self.texts(tables, columns)
        rows = np.arange(len(train_texts))
        if rest:
            test_texts = rest[0]
        else:
            rows, held_out = self.hold_out(table.rows, test_fraction, key)
            train_texts, test_texts = train_texts.select(rows), train_texts.select(held_out)
        owned = None if ids is None else ids[rows].tolist()
        notes = (*table.notes, *train_texts.notes)
        return Arranged(columns, label_names, train_texts, test_texts, owned, bool(rest), notes)

    def encode(
        self,
        table: Table,
        tokenizer: Any,
        max_length: int,
        test_fraction: float,
        key: Key,
        cache_dir: Path | None = None,
        id_column: str | None = None,
        whole: int | None = None,
    ) -> Encoded:
        """Tokenise a table. Without a test split of its own, a part of its rows becomes one.

        Args:
            test_fraction: the part of the rows, drawn by ``key`` before any partition.
            cache_dir: where token arrays are kept between runs; None: nowhere.
            id_column: the column of owners; None: the table's own, if it has one.
            whole: tokens that are kept where a row is one text, of which a model reads the first
                ``max_length``; None: no more than those.

        Raises:
            UserError: wrong columns or labels, or too few rows; names the column or the row.
        """
        there = self.arrange(table, test_fraction, key, id_column)
        more = whole is not None and there.train.second is None
        longest = max(max_length, whole or 0) if more else max_length
        train = tokenise(there.train, tokenizer, longest, cache_dir)
        test = tokenise(there.test, tokenizer, longest, cache_dir, testing=True)
        if not len(train.examples) or not len(test.examples):
            raise UserError(
                "data: no text is left to learn from or to test on (all are empty or too short); "
                "check data.task, or raise data.max_length where the prompt fills it"
            )
        first, second = train.examples, test.examples
        if more:
            end = end_of(tokenizer)
            first, second = (replace(x, reads=max_length, end=end) for x in (first, second))
        first, second = (self.finish(x, tokenizer, there.label_names) for x in (first, second))
        counts = {name: n + test.counts.get(name, 0) for name, n in train.counts.items()}
        said = there.train.said(tokenizer, counts)
        return Encoded(
            train=first,
            test=second,
            label_names=there.label_names,
            natural_ids=there.natural_ids and [there.natural_ids[i] for i in train.kept],
            counts={
                "examples": len(train.examples),
                "test": len(test.examples),
                **counts,
            },
            notes=(*there.notes, *said, *_class_notes(there.label_names, train, test)),
            provenance={
                **table.provenance,
                "columns": there.columns,
                "test_split": "given"
                if there.given
                else f"held out ({test_fraction:g} of the rows)",
                "tokens": {"train": train.digest, "test": test.digest},
            },
        )


def _owners(rows: Rows, column: str) -> NDArray[np.object_]:
    """The owner of every row, by the same rules as a class's name."""
    codes, values = coded(rows, named(rows, column, "partition.column"), "partition.column")
    return np.array([name_of(value) for value in values], dtype=object)[codes]


def _class_notes(names: tuple[str, ...], train: Tokenised, test: Tokenised) -> list[str]:
    """Notes on classes, where each example has one."""
    labels = train.examples.labels, test.examples.labels
    one = labels[0].ndim == 1 and labels[0].dtype.kind == "i"
    return class_notes(names, *labels) if names and one else []
