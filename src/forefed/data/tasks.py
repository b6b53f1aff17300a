"""What is learned from a row: a class of one or two texts, the text itself, or an answer in it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.settings import Choice, Registry
from forefed.core.types import Json
from forefed.data.columns import (
    AUTO,
    PAIRS,
    TEXTS,
    cannot_tell,
    class_ids,
    first_named,
    guess,
    guess_label,
    named,
    texts,
)
from forefed.data.encoding import Texts, encode_texts, tokenise
from forefed.data.examples import Examples, Indices
from forefed.data.sources import Table
from forefed.data.spans import Questions, read_questions

if TYPE_CHECKING:
    import datasets

__all__ = [
    "TASKS",
    "CausalLM",
    "Classification",
    "Encoded",
    "Pairs",
    "QuestionAnswering",
    "TextTask",
    "encode_texts",
]

Head = Literal["classification", "causal_lm", "spans"]
"""What a model ends in: a class, the next token, or the first and the last token of an answer."""


@dataclass(frozen=True)
class Encoded:
    """A table as tokens.

    ``natural_ids`` is the owner of every training example, where the table names owners (or a
    column of owners was asked for). ``counts``: "examples" and "test" (how many there are), and
    over both splits "empty", "truncated", "dropped", and for questions "out_of_reach"
    (``encoding.Tokenised``).
    """

    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    natural_ids: list[str] | None
    counts: dict[str, int]
    provenance: Json


class TextTask(Choice):
    """Base of the tasks."""

    head: ClassVar[Head]

    @abstractmethod
    def columns(self, rows: datasets.Dataset) -> dict[str, list[str]]:
        """The columns read, by the setting that names them; guessed where that is "auto".

        Raises:
            UserError: a column that is not there, or that cannot be guessed.
        """

    @abstractmethod
    def texts(
        self, tables: Sequence[tuple[str, datasets.Dataset]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        """Class names (none: no classes are learned) and the texts of every (place, rows)."""

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        """Of these columns, those of every text that a prediction is made from."""
        return [columns["text"]]

    def unlabelled(self, tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> Examples:
        """Examples to predict from, as a model was trained on them.

        Args:
            texts: by column of ``asked``, all of the same length.
        """
        return encode_texts(tokenizer, texts[0], max_length, *texts[1:])

    def groups(self, rows: datasets.Dataset) -> Indices:
        """A number for every row, 0 upwards; rows of one number are never divided by a split."""
        return np.arange(len(rows))

    def hold_out(
        self, rows: datasets.Dataset, fraction: float, key: Key
    ) -> tuple[Indices, Indices]:
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

    def encode(
        self,
        table: Table,
        tokenizer: Any,
        max_length: int,
        test_fraction: float,
        key: Key,
        cache_dir: Path | None = None,
        id_column: str | None = None,
    ) -> Encoded:
        """Tokenise a table. Without a test split of its own, a part of its rows becomes one.

        Args:
            test_fraction: the part of the rows, drawn by ``key`` before any partition.
            cache_dir: where token arrays are kept between runs; None: nowhere.
            id_column: the column of owners; None: the table's own, if it has one.

        Raises:
            UserError: wrong columns or labels, or too few rows; names the column or the row.
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
        train = tokenise(train_texts, tokenizer, max_length, cache_dir)
        test = tokenise(test_texts, tokenizer, max_length, cache_dir, testing=True)
        if not len(train.examples) or not len(test.examples):
            raise UserError(
                "data: no text is left to learn from or to test on (all are empty or too short); "
                "check data.task, or raise data.max_length where the prompt fills it"
            )
        return Encoded(
            train=train.examples,
            test=test.examples,
            label_names=label_names,
            natural_ids=None if ids is None else [ids[i] for i in rows[train.kept]],
            counts={
                "examples": len(train.examples),
                "test": len(test.examples),
                **{name: n + test.counts.get(name, 0) for name, n in train.counts.items()},
            },
            provenance={
                **table.provenance,
                "columns": columns,
                "test_split": "given" if rest else f"held out ({test_fraction:g} of the rows)",
                "tokens": {"train": train.digest, "test": test.digest},
            },
        )


class Classification(TextTask):
    """One class per text."""

    kind: Literal["classification"] = "classification"
    head: ClassVar[Head] = "classification"
    text: str | list[str] = AUTO
    """A column, or several that are joined by newlines; "auto": guessed from names and types."""
    label: str = AUTO
    labels: list[str] | None = None
    """The classes in the order of the logits; None: all that occur, sorted. For a label column of
    integers these are the names of 0, 1, ..."""

    def columns(self, rows: datasets.Dataset) -> dict[str, list[str]]:
        where = "data.task.text"
        asked = [self.text] if isinstance(self.text, str) else self.text
        text = [] if self.text == AUTO else [named(rows, c, where) for c in asked]
        label = _label(rows, self.label, text)
        return {"text": text or guess(rows, TEXTS, where, [label]), "label": [label]}

    def texts(
        self, tables: Sequence[tuple[str, datasets.Dataset]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        names, ids = class_ids(tables, columns["label"][0], self.labels)
        first = [texts(rows, columns["text"]) for _, rows in tables]
        return names, [Texts(a, None, y) for a, y in zip(first, ids, strict=True)]


class Pairs(TextTask):
    """One class per pair of texts (entailment, paraphrase)."""

    kind: Literal["pairs"] = "pairs"
    head: ClassVar[Head] = "classification"
    text1: str = AUTO
    text2: str = AUTO
    label: str = AUTO
    labels: list[str] | None = None
    """As for ``classification``."""

    def columns(self, rows: datasets.Dataset) -> dict[str, list[str]]:
        if (self.text1 == AUTO) != (self.text2 == AUTO):
            raise UserError("data.task: name both text1 and text2, or neither")
        pair: list[str] = []
        if self.text1 != AUTO:
            pair = [
                named(rows, self.text1, "data.task.text1"),
                named(rows, self.text2, "data.task.text2"),
            ]
        label = _label(rows, self.label, pair)
        pair = pair or guess(rows, PAIRS, "data.task.text1 and text2", [label])
        return {"text1": pair[:1], "text2": pair[1:], "label": [label]}

    def texts(
        self, tables: Sequence[tuple[str, datasets.Dataset]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        names, ids = class_ids(tables, columns["label"][0], self.labels)
        return names, [
            Texts(texts(rows, columns["text1"]), texts(rows, columns["text2"]), y)
            for (_, rows), y in zip(tables, ids, strict=True)
        ]

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns["text1"], columns["text2"]]


class CausalLM(TextTask):
    """The text itself, token by token; after a prompt, where a column gives one."""

    kind: Literal["causal_lm"] = "causal_lm"
    head: ClassVar[Head] = "causal_lm"
    text: str = AUTO
    prompt: str | None = None
    """A column of prompts: they stand before the text and carry no loss. Nothing is put between
    prompt and text."""

    def columns(self, rows: datasets.Dataset) -> dict[str, list[str]]:
        prompt = [] if self.prompt is None else [named(rows, self.prompt, "data.task.prompt")]
        where = "data.task.text"
        if self.text != AUTO:
            return {"text": [named(rows, self.text, where)], "prompt": prompt}
        single = [names for names in TEXTS if len(names) == 1]
        return {"text": guess(rows, single, where, prompt), "prompt": prompt}

    def texts(
        self, tables: Sequence[tuple[str, datasets.Dataset]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        found = []
        for _, rows in tables:
            text = texts(rows, columns["text"])
            prompt = texts(rows, columns["prompt"]) if columns["prompt"] else [""] * len(text)
            found.append(Texts(prompt, text, None))
        return (), found

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns["prompt"] or columns["text"]]


class QuestionAnswering(TextTask):
    """The part of a context that answers a question, or that none does (SQuAD)."""

    kind: Literal["qa"] = "qa"
    head: ClassVar[Head] = "spans"
    question: str = AUTO
    context: str = AUTO
    answer: str = AUTO
    """A column of answers as they stand in the context ("": no answer), or of SQuAD's own form,
    which has "text" and "answer_start" within: all of them count, the first one is learned."""
    answer_start: str = AUTO
    """The column of the character of the context at which the answer begins (-1: no answer)."""
    longest_answer: Annotated[int, Field(ge=1)] = 30
    """Tokens of the longest answer that is predicted."""

    def columns(self, rows: datasets.Dataset) -> dict[str, list[str]]:
        guesses = {"question": ("question",), "context": ("context", "passage")}
        found = {
            setting: _column(rows, getattr(self, setting), conventional, setting)
            for setting, conventional in guesses.items()
        }
        found["answer"] = _column(rows, self.answer, ("answer", "answers"), "answer")
        kind = rows.features[found["answer"]]
        if not (isinstance(kind, dict) and {"text", "answer_start"} <= kind.keys()):
            starts = ("answer_start", "start")
            found["answer_start"] = _column(rows, self.answer_start, starts, "answer_start")
        elif self.answer_start != AUTO:
            raise UserError(
                f"data.task.answer_start: the column '{found['answer']}' says itself where its "
                "answers begin; leave this setting out"
            )
        return {setting: [column] for setting, column in found.items()}

    def texts(
        self, tables: Sequence[tuple[str, datasets.Dataset]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        return (), [
            read_questions(place, rows, columns, self.longest_answer) for place, rows in tables
        ]

    def groups(self, rows: datasets.Dataset) -> Indices:
        """Questions about one context: it would be known from training."""
        numbers: dict[str, int] = {}
        contexts = texts(rows, self.columns(rows)["context"])
        return np.array([numbers.setdefault(c, len(numbers)) for c in contexts], dtype=np.int64)

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns["question"], columns["context"]]

    def unlabelled(self, tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> Examples:
        questions = Questions.unanswered(texts[0], texts[1], self.longest_answer)
        return tokenise(questions, tokenizer, max_length, testing=True).examples


def _column(rows: datasets.Dataset, asked: str, conventional: Sequence[str], setting: str) -> str:
    where = f"data.task.{setting}"
    if asked != AUTO:
        return named(rows, asked, where)
    found = first_named(rows.column_names, [(name,) for name in conventional])
    if found is None:
        raise cannot_tell(rows, where)
    return found[0]


TASKS: Registry[TextTask] = Registry(
    "data.task", [Classification, Pairs, CausalLM, QuestionAnswering]
)


def _label(rows: datasets.Dataset, asked: str, taken: Sequence[str]) -> str:
    where = "data.task.label"
    return guess_label(rows, where, taken) if asked == AUTO else named(rows, asked, where)


def _owners(rows: datasets.Dataset, column: str) -> list[str]:
    values = rows[named(rows, column, "partition.column")][:]
    missing = next((i for i, v in enumerate(values) if v is None or v == ""), None)
    if missing is not None:
        raise UserError(f"partition.column: row {missing + 1} has no owner in column '{column}'")
    return [str(v) for v in values]
