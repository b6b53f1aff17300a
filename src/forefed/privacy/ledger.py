"""The privacy ledger: every release, on the disk before anybody can see it.

One line per release. Nothing is ever taken out: not by a resumed run, which may do rounds again.
The same sums made again are the same release (``Release.tag``), as they get the same noise; other
sums in their place are another one, and cost again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from forefed.core.files import append, read_table_lines, write_atomic
from forefed.core.types import Json
from forefed.privacy.release import Release

LEDGER = "privacy.jsonl"
LOST = (
    "restore it from a copy; without it nobody knows what was spent, so this run cannot go on as a "
    "private one"
)
_NAMES = {f.name for f in fields(Release)}


@dataclass
class Ledger:
    """The releases of one run, in a file that only grows."""

    path: Path
    made: list[Release]

    @staticmethod
    def of(folder: Path) -> Ledger:
        """The ledger of a run's folder. A torn last line is of a release that was never made.

        Raises:
            UserError: damaged otherwise.
        """
        path = folder / LEDGER
        lines, torn = read_table_lines(path, LOST, _fits)
        if torn:
            write_atomic(path, b"".join(_line(line) for line in lines))
        return Ledger(path, [Release(**line) for line in lines])

    def enter(self, releases: Iterable[Release]) -> None:
        """Write these releases down, if they are none that were made before; then they may go."""
        known = {(r.unit, r.round, r.tag) for r in self.made}
        new = [r for r in releases if (r.unit, r.round, r.tag) not in known]
        if new:
            append(self.path, b"".join(_line(r.to_json()) for r in new))
            self.made += new


def _line(table: Json) -> bytes:
    return json.dumps(table).encode() + b"\n"


def _fits(line: Json) -> bool:
    numbers = all(isinstance(line.get(n), int | float) for n in ("sigma", "q", "count", "round"))
    return line.keys() == _NAMES and numbers and line.get("unit") in ("client", "example")
