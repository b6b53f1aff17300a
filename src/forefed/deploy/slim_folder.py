"""A graph for a site without torch: written once for a run, where torch is, and sent there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.core.keys import Key
from forefed.data.prepare import load_table
from forefed.data.sources import Files
from forefed.deploy.settings import for_sites
from forefed.deploy.site import read_rows
from forefed.deploy.slim_site import ABOUT, settings_digest
from forefed.deploy.weights import model_of
from forefed.models.graph import write_graph
from forefed.models.load import check_files
from forefed.run.build import load_model
from forefed.run.slim import settings_of, write_client
from forefed.slim.settings import GRAPH


def write_site(config: Config, folder: Path, rows: Path | None = None) -> None:
    """What ``slim_site`` answers from.

    Args:
        config: the run's, as the server has it.
        rows: the site's rows, to be written as ``rows.jsonl``; None: the site writes that file
            itself, of lines {"text": "...", "label": 0}, by the labels in run.json.

    Raises:
        UserError: settings that such a client cannot do, or rows or a model that cannot be read.
    """
    named = getattr(config.data.task, "labels", None)
    if not named:
        raise UserError("data.task.labels: name the classes; a site without torch finds none")
    tokenizer = check_files(config.model, config.data.task.head)
    task = load_model(config, named)
    settings = settings_of(config, task, tokenizer, deployed=True)
    texts, labels = list[str](), list[int]()
    if rows is not None:
        own = config.model_copy(
            update={"data": config.data.model_copy(update={"source": Files(path=rows)})}
        )
        labels = read_rows(own, tokenizer).train.labels.tolist()
        table, _ = load_table(own.data)
        split = Key(config.seed).fold("data")
        whole = replace(table, test=table.rows)
        texts = [*own.data.task.arrange(whole, own.data.test_fraction, split).train.first]
    write_client(folder, settings, tokenizer, texts, labels)
    write_graph(task, folder / GRAPH)
    about = {
        "settings": settings_digest(for_sites(config)),
        "weights": model_of(task.model, config.model, task.params),
        "back": config.checkpoint_every,
        "labels": [*named],
    }
    write_json(folder / ABOUT, about)
