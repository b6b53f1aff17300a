"""``python -m forefed.deploy.start_worker DIR``: the warm worker of a site's folder."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from forefed.core.errors import UserError
from forefed.deploy.places import SiteFolder
from forefed.deploy.settings import read_site
from forefed.deploy.site import Site
from forefed.deploy.worker import serve


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    folder = SiteFolder(Path(sys.argv[1]))
    try:
        serve(folder.socket, Site(read_site(folder.root), folder.root))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
