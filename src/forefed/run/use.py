"""Using what a run has learned: predictions and the exported adapter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from forefed.core.errors import UserError
from forefed.core.settings import parse
from forefed.core.types import Batch, Params
from forefed.data.tasks import encode_texts
from forefed.models.load import load_tokenizer
from forefed.models.task import Task
from forefed.run import record
from forefed.run.build import load_model
from forefed.run.checkpoint import load_checkpoint
from forefed.run.config import Config

CONTINUATION_TOKENS = 40


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


def predict_texts(run: Path, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(text, answer) for every text, with the parameters of the run's last checkpoint.

    Raises:
        UserError: no run there, nothing trained yet, or an odd number of texts for pairs.
    """
    config = parse(Config, record.read_config(run))
    task, params = _trained(run, config)
    tokenizer = load_tokenizer(config.model)
    first, second = list(texts), None
    if config.data.task.kind == "pairs":
        if len(texts) % 2:
            raise UserError("predict: this run judges pairs of texts; give two texts per example")
        first, second = list(texts[::2]), list(texts[1::2])
    if task.causal:
        for text in first:
            yield text, _continue(task, params, tokenizer, text)
        return
    examples = encode_texts(tokenizer, first, config.data.max_length, second)
    batch = examples.batch(range(len(examples)))
    with torch.no_grad():
        chances = torch.softmax(task.logits(params, batch).float(), dim=-1)
    for text, row in zip(first, chances, strict=True):
        best = int(row.argmax())
        yield text, f"{task.label_names[best]} ({float(row[best]):.2f})"


def _trained(run: Path, config: Config) -> tuple[Task, Params]:
    task = load_model(config, record.read_json(run / "partition.json")["labels"])
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
