"""Using what a run has learned: predictions from its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.settings import parse
from forefed.core.types import Params
from forefed.data.columns import named
from forefed.data.encoding import end_of
from forefed.data.sources import Files
from forefed.federation.state import RunState
from forefed.models.generate import check_room, continuations
from forefed.models.load import load_tokenizer
from forefed.models.objectives import OBJECTIVES, NextToken, objective_of
from forefed.models.task import Task
from forefed.run import record
from forefed.run.build import load_model, whole_length
from forefed.run.checkpoint import FILE, Checkpoint, check_fits, load_checkpoint, made_with
from forefed.run.start_result import load_begun

if TYPE_CHECKING:
    import pyarrow

CONTINUATION_TOKENS = 100
BATCH = 16
OTHER_SETTINGS = (
    "the settings of this run are not read as they were when it trained: another version of "
    "forefed made it (environment.json says which), or config.json was changed"
)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text: a class, an answer or a continuation, and where it knows
    classes the probability of each, in their order."""

    text: str
    predicted: str
    chances: tuple[float, ...] = ()
    of_one: bool = True
    """Are the probabilities those of one class, and not of labels that may all apply?"""

    @property
    def words(self) -> str:
        """The prediction, with the probability of what was predicted."""
        sure = f" ({max(self.chances):.2f})" if self.chances and self.of_one else ""
        return f"{self.predicted}{sure}"


@dataclass(frozen=True)
class Own:
    """What a site has of a run of others: ``kept``, the parameters that it keeps to itself, and the
    ``model`` that it has in the place of the run's."""

    kept: Params
    model: str


def predict(
    run: Path,
    texts: Sequence[str],
    client: int | None = None,
    tokens: int | None = None,
    site: Own | None = None,
) -> Iterator[Prediction]:
    """A prediction for every text, with the parameters of the run's last checkpoint.

    Args:
        client: with what this client has trained for itself (``sharing``), by its number from 0;
            None: the model of all clients.
        tokens: at most, of what a language model says; None: what its task says, or 100.
        site: with what a site of a run between machines keeps to itself
            (``forefed.deploy.own.of_site``).

    Raises:
        UserError: no run there, nothing trained yet, texts missing where an example has two, a
            text that is none, or a client that has nothing of its own.
    """
    config = parse(Config, record.read_config(run))
    if site is not None:
        here = config.model.model_copy(update={"name": site.model})
        config = config.model_copy(update={"model": here})
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
    writes = issubclass(OBJECTIVES[config.data.task.head], NextToken)
    if tokens is not None and not writes:
        raise UserError(
            f"predict: --tokens says how much a language model writes, and this run "
            f"(data.task.kind = '{config.data.task.kind}') writes nothing; leave it out"
        )
    by_column = [list(texts[i :: len(columns)]) for i in range(len(columns))]
    task, saved = trained(run, config, client=client)
    params = saved.params if site is None else with_own(config, task, saved.params, site.kept)
    tokenizer = load_tokenizer(config.model)
    if task.causal:
        most = tokens or int(getattr(config.data.task, "tokens", CONTINUATION_TOKENS))
        yield from _continuations(run, config, task, params, tokenizer, by_column[0], most)
        return
    begun = load_begun(run)
    words = None if begun is None else begun.words
    asked = record.read_json(run / "environment.json")["data"]["columns"]
    whole = whole_length(config, tokenizer, asked) or 0
    longest = max(config.data.max_length, whole)
    examples = config.data.task.unlabelled(tokenizer, by_column, longest)
    examples = config.data.task.finish(examples, tokenizer, task.label_names)
    if whole:
        examples = replace(examples, reads=config.data.max_length, end=end_of(tokenizer))
    for start in range(0, len(examples), BATCH):
        rows = np.arange(start, min(start + BATCH, len(examples)))
        with torch.no_grad():
            logits = task.logits_with(params, examples.batch(rows), examples, rows, words)
        said = task.objective.answers(logits, examples, rows)
        chances = task.objective.chances(logits)
        known = [()] * len(said) if chances is None else [tuple(c) for c in chances.tolist()]
        for i, (answer, one) in enumerate(zip(said, known, strict=True), start):
            yield Prediction(by_column[0][i], answer, one, task.objective.of_one)


def told(run: Path, common: bool = True) -> str:
    """What must be said beside this run's predictions (``common``: of nobody's own model) and
    exports; empty: nothing."""
    config = parse(Config, record.read_config(run))
    shared = config.sharing.told() if common else ""
    if shared and config.partition.kind != "sites":
        shared += " ('forefed predict --client 0' answers as client 0 would)"
    other = "" if made_with(run, config) else OTHER_SETTINGS
    return "; ".join(text for text in (shared, other) if text)


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
    columns = record.read_json(run / "environment.json")["data"]["columns"]
    for column in (c for names in config.data.task.asked(columns) for c in names):
        named(rows, column, f"predict, {path}")
    by_column = config.data.task.asked_texts(rows, columns)
    texts = [text for row in zip(*by_column, strict=True) for text in row]
    return rows.table(), texts


def classes_of(run: Path) -> list[str]:
    """The classes that the run learned, in the order of the probabilities."""
    config = parse(Config, record.read_config(run))
    return list(objective_of(record.label_names(run), config.data.task.head).classes)


def trained(
    run: Path,
    config: Config,
    exact: bool = False,
    file: str = FILE,
    client: int | None = None,
) -> tuple[Task, RunState]:
    """The run's task, and the state of its last checkpoint.

    Args:
        exact: the base in float32 and not quantised, whatever the run took.
        file: BEST for the parameters of the best evaluation.
        client: with the parameters that this client keeps to itself; None: nobody's.

    Raises:
        UserError: no checkpoint, a damaged one, or one of another model; or a client that keeps
            nothing.
    """
    model = config.model
    if exact:
        model = model.model_copy(
            update={"dtype": "float32", "quantise": "none", "weights": "memory"}
        )
    as_asked = config.model_copy(update={"model": model})
    task = load_model(as_asked, record.label_names(run))
    saved = load_checkpoint(run, config, task.device, file, to_go_on=False)
    if saved is None:
        raise UserError(f"{run}: nothing is trained yet (there is no {file})")
    check_fits(run, saved.state, task.params)
    if client is None:
        return task, saved.state
    kept = _own(run, config, saved, client)
    return task, replace(saved.state, params=with_own(config, task, saved.state.params, kept))


def with_own(config: Config, task: Task, params: Params, kept: Params) -> Params:
    """The common parameters, with those that somebody keeps to himself."""
    own = config.sharing.own(params, kept, task.head)
    return {**params, **{name: x.to(params[name]) for name, x in own.items()}}


def _own(run: Path, config: Config, saved: Checkpoint, client: int) -> Params:
    """What a client keeps to itself."""
    clients = record.read_json(run / "partition.json").get("clients", 0)
    if not config.sharing.personal:
        raise UserError(
            f"--client: clients of {run} keep nothing to themselves (sharing.kind = "
            f"'{config.sharing.kind}'), so all have the same model; leave it out"
        )
    if config.partition.kind == "sites":
        raise UserError(
            f"--client: what sites of {run} keep to themselves is not here; at a site 'forefed "
            "predict RUN --site FOLDER' answers with its own"
        )
    if not 0 <= client < clients:
        raise UserError(f"--client {client}: {run} has clients 0 to {clients - 1}")
    own = saved.clients.private(client)
    if not own:
        raise UserError(f"--client {client}: this client has not trained in any round of {run}")
    return own


def _continuations(
    run: Path,
    config: Config,
    task: Task,
    params: Params,
    tokenizer: Any,
    texts: Sequence[str],
    tokens: int,
) -> Iterator[Prediction]:
    """What a language model says after each text, neighbours of one batch together."""
    columns = record.read_json(run / "environment.json")["data"]["columns"]
    prompts = config.data.task.prompts(tokenizer, texts, columns)
    ends = config.data.task.ends(tokenizer, columns)
    for prompt, text in zip(prompts, texts, strict=True):
        check_room(prompt, text, task.model.config)
    for start in range(0, len(texts), BATCH):
        some = prompts[start : start + BATCH]
        said = continuations(task.logits, params, some, tokens, ends, tokenizer.pad_token_id)
        for text, ids in zip(texts[start : start + BATCH], said, strict=True):
            yield Prediction(text, str(tokenizer.decode(ids, skip_special_tokens=True)))
