"""One cell in a process of its own: ``python -m forefed.compare.cell``.

The configuration comes as one line of JSON on standard input, which the parent then keeps open:
when it closes (the parent stopped, or was killed), this process ends at once. That is safe: a run
goes on from its last checkpoint, bit for bit, after a kill at any moment.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from forefed.core.errors import UserError


def main() -> int:
    """Run or go on with the cell; 0: finished, 2: a user's mistake, told on standard error."""
    from forefed.run import configure, run

    config = configure(base=json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run(config, resume=(config.folder / "config.json").exists())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
