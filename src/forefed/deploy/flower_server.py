"""Flower's process at the server: one run of Forefed over the Grid.

What it runs stands in a folder that ``forefed server run`` has written; records, checkpoints and
the adapter go to the run's own folder, as in a rehearsal.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from forefed.config.config import configure
from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.deploy.connect import ERROR, NOTES, connect_by
from forefed.deploy.flower_post import GridPost
from forefed.run import Watcher, run
from forefed.run.record import append, read_config

app = ServerApp()


class Notes(Watcher):
    """Hands on what a person should know of a run, to whoever follows it."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say

    def note(self, text: str) -> None:
        self.say(text)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on."""
    folder = Path(str(context.run_config["folder"]))
    os.chdir(str(context.run_config["here"]))  # relative paths mean what they meant to the user
    config = configure(base=read_config(folder))
    resume, accept = (bool(context.run_config[name]) for name in ("resume", "accept-changes"))

    def say(text: str) -> None:
        append(config.folder, NOTES, {"text": text})

    try:
        run(
            config,
            resume=resume,
            watcher=Notes(say),
            connect=connect_by(GridPost(grid), say),
            accept_changes=accept,
        )
    except Exception as error:  # Flower shows nothing of it where the run was started
        said = str(error) if isinstance(error, UserError) else repr(error)
        details = traceback.format_exc()
        write_json(folder / ERROR, {"error": said, "traceback": details})
        raise
