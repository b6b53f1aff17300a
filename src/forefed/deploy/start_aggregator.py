"""``python -m forefed.deploy.start_aggregator DIR``: an aggregator's run on its own SuperLink."""

from __future__ import annotations

import sys
from pathlib import Path

from forefed.core.errors import UserError
from forefed.deploy.aggregator_folder import AggregatorFolder, relay


def main() -> None:
    try:
        relay(AggregatorFolder(Path(sys.argv[1])))
    except UserError as error:  # the SuperLink may not be there yet: it is tried again
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
