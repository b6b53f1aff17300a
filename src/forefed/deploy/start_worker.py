"""``python -m forefed.deploy.start_worker DIR``: the warm worker of a site's folder."""

from __future__ import annotations

import sys
from pathlib import Path

from forefed.deploy.places import SiteFolder
from forefed.deploy.settings import read_site
from forefed.deploy.site import Site
from forefed.deploy.worker import work


def main() -> None:
    root = Path(sys.argv[1])
    work(SiteFolder(root).socket, lambda: Site(read_site(root), root))


if __name__ == "__main__":
    main()
