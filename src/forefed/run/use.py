"""Using what a run has learned: predictions and the exported adapter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from forefed.core.errors import UserError
from forefed.core.settings import parse
from forefed.core.types import Batch, Params
from forefed.data.columns import named
from forefed.data.columns import texts as texts_of
from forefed.data.sources import Files
from forefed.models.load import load_tokenizer
from forefed.models.task import Task
from forefed.run import record
from forefed.run.build import load_model
from forefed.run.checkpoint import load_checkpoint
from forefed.run.config import Config

if TYPE_CHECKING:
    import pyarrow

CONTINUATION_TOKENS = 40
BATCH = 16


def export_adapter(run: Path, folder: Path) -> None:
    """Copy a run's adapter.

    Raises:
        UserError: the run is not finished, or the folder exists and is not empty.
    """
    record.read_config(run)
    source = run / "adapter"
    if not source.exists():
        raise UserError(f"{run}: the run is not finished, so it has no adapter yet (--resume it)")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text: a class, an answer or a continuation, and where it knows
    classes the probability of each, in their order."""

    text: str
    predicted: str
    chances: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """The prediction, with the probability of what was predicted."""
        return f"{self.predicted} ({max(self.chances):.2f})" if self.chances else self.predicted


def predict(run: Path, texts: Sequence[str]) -> Iterator[Prediction]:
    """A prediction for every text, with the parameters of the run's last checkpoint.

    Raises:
        UserError: no run there, nothing trained yet, texts missing where an example has two, or
            a text that is none.
    """
    config = parse(Config, record.read_config(run))
    columns = asked_columns(run, config)
    if not texts:
        raise UserError("predict: give texts, or a file of them (--file)")
    if len(texts) % len(columns):
        names = " and ".join("/".join(names) for names in columns)
        raise UserError(
            f"predict: this run needs two texts per example ({names}), so {len(texts)} is odd"
        )
    for number, text in enumerate(texts, 1):
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"predict: text {number} is not UTF-8 ({text[:40]!r}); mend it")
    by_column = [list(texts[i :: len(columns)]) for i in range(len(columns))]
    task, params = _trained(run, config)
    tokenizer = load_tokenizer(config.model)
    if task.causal:
        for text in by_column[0]:
            yield Prediction(text, _continue(task, params, tokenizer, text))
        return
    examples = config.data.task.unlabelled(tokenizer, by_column, config.data.max_length)
    for start in range(0, len(examples), BATCH):
        rows = range(start, min(start + BATCH, len(examples)))
        with torch.no_grad():
            logits = task.logits(params, examples.batch(rows))
        said = task.objective.answers(logits, examples, rows)
        chances = task.objective.chances(logits)
        known = [()] * len(said) if chances is None else [tuple(c) for c in chances.tolist()]
        for i, (answer, one) in enumerate(zip(said, known, strict=True), start):
            yield Prediction(by_column[0][i], answer, one)


def asked_columns(run: Path, config: Config) -> list[list[str]]:
    """The columns, as they were called in training, of every text that an example consists of."""
    columns = record.read_json(run / "environment.json")["data"]["columns"]
    return config.data.task.asked(columns)


def rows_of_texts(run: Path, texts: Sequence[str]) -> pyarrow.Table:
    """Texts as ``predict`` takes them, as rows under the names of the run's columns."""
    import pyarrow

    columns = asked_columns(run, parse(Config, record.read_config(run)))
    names = ["/".join(column) for column in columns]
    return pyarrow.table({name: texts[i :: len(names)] for i, name in enumerate(names)})


def texts_of_file(run: Path, path: Path) -> tuple[pyarrow.Table, list[str]]:
    """All rows of a file with the columns that the run was trained on, and what ``predict``
    wants of them.

    Raises:
        UserError: no such file or columns.
    """
    config = parse(Config, record.read_config(run))
    rows = Files(path=path).load().rows
    columns = asked_columns(run, config)
    for column in (c for names in columns for c in names):
        named(rows, column, f"predict, {path}")
    by_column = [texts_of(rows, names) for names in columns]
    texts = [text for row in zip(*by_column, strict=True) for text in row]
    return rows.table(), texts


def classes_of(run: Path) -> list[str]:
    """The classes that the run learned, in the order of the probabilities."""
    return list(record.read_json(run / "partition.json")["labels"] or ())


def _trained(run: Path, config: Config) -> tuple[Task, Params]:
    task = load_model(config, record.label_names(run))
    saved = load_checkpoint(run, config, task.device)
    if saved is None:
        raise UserError(f"{run}: nothing is trained yet (no checkpoint)")
    return task, saved.state.params


def _continue(task: Task, params: Params, tokenizer: object, text: str) -> str:
    """Greedy continuation, one token at a time (a look at the model, no fast decoder)."""
    encode, decode = tokenizer.encode, tokenizer.decode  # type: ignore[attr-defined]
    ids = list(encode(text))
    eos = getattr(tokenizer, "eos_token_id", None)
    start = len(ids)
    with torch.no_grad():
        for _ in range(CONTINUATION_TOKENS):
            batch = Batch({"input_ids": torch.tensor([ids])}, torch.zeros(1, dtype=torch.long))
            token = int(task.logits(params, batch)[0, -1].argmax())
            if token == eos:
                break
            ids.append(token)
    return str(decode(ids[start:]))
