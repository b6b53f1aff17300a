"""From a run's configuration and a post to its transport."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from forefed.config.config import Config
from forefed.core.files import write_atomic
from forefed.data.partition import Sites
from forefed.deploy.parcels import Post
from forefed.deploy.remote import RemoteClients
from forefed.deploy.settings import for_sites
from forefed.deploy.weights import model_of
from forefed.models.task import Task
from forefed.run.build import Connect

RUN_ID = "run-id"
"""File of a run's folder: the id by which sites know this run, also after it was resumed."""
NOTES = "notes.jsonl"
"""File of a run's folder: what was said of sites."""
ERROR = "error.json"
"""File beside the settings that a run was handed over by: why it could not start."""


def connect_by(post: Post, say: Callable[[str], None] = lambda _: None) -> Connect:
    """What ``run`` needs to reach its clients by this post; ``say`` hears who comes, or why not."""

    def connect(config: Config, task: Task) -> RemoteClients:
        assert isinstance(config.partition, Sites), "config/compat.py wants it"
        return RemoteClients(
            post,
            run_id(config),
            for_sites(config),
            config.partition.names,
            model_of(task.model, config.model, task.params),
            config.cohort_min,
            config.partition.join_s,
            say,
            sharing=config.sharing,
        )

    return connect


def run_id(config: Config) -> str:
    """Drawn at the run's first start; no result depends on it."""
    path = config.folder / RUN_ID
    if not path.exists():
        write_atomic(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="utf-8").strip()
