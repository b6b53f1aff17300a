"""Cells of a long table, kept between calls: what was measured once is not run again.

A file of ``compare/`` has one line a cell. Whoever changes what a cell measures deletes the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KEPT = Path("compare")


def kept(
    name: str, place: Sequence[str | float], run: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What ``run`` gives, from compare/NAME.jsonl or made now."""
    KEPT.mkdir(exist_ok=True)
    file = KEPT / f"{name}.jsonl"
    for line in map(json.loads, file.read_text().splitlines() if file.exists() else ()):
        if line["place"] == [*place]:
            return dict(line["found"])
    began = time.process_time()
    found = run()
    seconds = round(time.process_time() - began, 2)
    with file.open("a") as out:
        out.write(json.dumps({"place": [*place], "found": found, "cpu_s": seconds}) + "\n")
    return found
