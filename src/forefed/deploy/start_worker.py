"""``python -m forefed.deploy.start_worker DIR``: the warm worker of a site's folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from forefed.core.errors import UserError
from forefed.deploy.places import SiteFolder
from forefed.deploy.settings import read_site
from forefed.deploy.site import Site
from forefed.deploy.worker import serve


def work(folder: SiteFolder, make: Callable[[], Site]) -> None:
    """Answer on the folder's socket until the process is ended; a user's mistake ends it with 2,
    after which it is not started again."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        serve(folder.socket, make())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    root = Path(sys.argv[1])
    work(SiteFolder(root), lambda: Site(read_site(root), root))


if __name__ == "__main__":
    main()
