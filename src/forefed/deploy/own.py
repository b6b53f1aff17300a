"""What a site keeps to itself of a run, for its own answers.

The common parameters are the server's to hand over (the run's folder); a site's own never leave it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.settings import parse
from forefed.core.states import below
from forefed.deploy.connect import RUN_ID
from forefed.deploy.journal import Journal
from forefed.deploy.settings import read_site
from forefed.local.training import PRIVATE
from forefed.run import record
from forefed.use.predict import Own


def of_site(run: Path, root: Path) -> Own:
    """What the site in the folder ``root`` has of the run in the folder ``run``, a copy of the
    server's.

    Raises:
        UserError: no run between machines there, no site, or one that keeps nothing of it.
    """
    config = parse(Config, record.read_config(run))
    path = run / RUN_ID
    if not path.is_file():
        raise UserError(
            f"--site: {run} is no run between machines (there is no {RUN_ID} in it); 'forefed "
            "predict RUN --client 0' answers as a client of a rehearsal would"
        )
    site = read_site(root)
    if not config.sharing.personal:
        raise UserError(
            f"--site: sites of {run} keep nothing to themselves (sharing.kind = "
            f"'{config.sharing.kind}'), so all have the same model; leave it out"
        )
    state = Journal(root / "done").state(path.read_text(encoding="utf-8").strip(), sys.maxsize)
    kept = below(state, PRIVATE)
    if not kept:
        raise UserError(f"--site: {site.name} keeps nothing of {run}; it has not trained in it")
    name = config.model.name
    return Own(kept, site.models.get(name, name))
