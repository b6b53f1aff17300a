"""Clients that are there at some times only, as phones are at night.

Sources: Bonawitz et al., "Towards federated learning at scale" (arXiv 1902.01046), whose devices
come by the hour of the day; Lai et al., "FedScale" (arXiv 2105.11367), for traces of them.

    client,from,to        a file: in rounds, both ends included, any number of lines a client
    0,1,8

Without a file every client is there for a part of each day, from an hour of its own: drawn from the
run's key, as far as ``together`` lets them differ.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.types import ServerContext
from forefed.select.select import Selector

Times = tuple[tuple[int, int], ...]


class Availability(Selector):
    """So many as wanted of those that are there, by a trace or by the time of the day."""

    kind: Literal["availability"] = "availability"
    trace: Path | None = None
    """A CSV file with the columns client, from, to (rounds); None: days as below. A client that it
    does not name is never there."""
    day: Annotated[int, Field(ge=1)] = 24
    """Rounds a day."""
    part: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Of the day in which a client is there."""
    together: Annotated[float, Field(ge=0, le=1)] = 0.0
    """1: all come at the same hour; 0: at any."""
    run: Annotated[int, Field(ge=0)] = 0
    """Draws the hours: the same clients come at the same hours in runs of any seed."""

    source: ClassVar[str] = "arXiv 1902.01046; FedScale, arXiv 2105.11367"

    def there(self, client: int, round: int) -> bool:
        """Is this client there in this round?"""
        if self.trace is not None:
            return any(a <= round <= b for a, b in traced(self.trace).get(client, ()))
        hour = float(Key(self.run).fold("hour", client).uniform((1,))) * (1 - self.together)
        return ((round - 1) / self.day - hour) % 1 < self.part

    def select(self, members: Sequence[int], size: int, ctx: ServerContext) -> list[int]:
        here = [m for m in members if self.there(m, ctx.round)]
        if not here:
            return []
        numbers = ctx.key.fold("cohort").choice(len(here), min(size, len(here)))
        return [here[i] for i in numbers]


@lru_cache
def traced(file: Path) -> dict[int, Times]:
    """When each client is there.

    Raises:
        UserError: no such file, or a line that is none of three whole numbers.
    """
    times: dict[int, list[tuple[int, int]]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for number, row in enumerate(csv.DictReader(lines), 2):
                try:
                    client, first, last = (int(row[c]) for c in ("client", "from", "to"))
                except (KeyError, TypeError, ValueError):
                    raise UserError(
                        f"select.trace: line {number} of {file} is not client,from,to in whole "
                        "numbers; mend it"
                    ) from None
                times.setdefault(client, []).append((first, last))
    except OSError as error:
        raise UserError(f"select.trace: {file} cannot be read ({error.strerror})") from None
    return {c: tuple(t) for c, t in times.items()}
