"""What a round did, as a value."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from forefed.core.types import Json, Lost, Update
from forefed.privacy import Release


class Laps:
    """Seconds by what was done in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, name: str) -> None:
        """What was done since the last call is called so."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def move(self, seconds: float, of: str, to: str) -> None:
        """Part of one time belongs to another."""
        self.seconds[of] -= seconds
        self.seconds[to] += seconds


@dataclass(frozen=True)
class RoundReport:
    """What one round did; the record writes it as one line."""

    round: int
    cohort: tuple[int, ...]
    updates: tuple[Update, ...]
    lost: tuple[Lost, ...]
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]
    pending: int = 0
    """Updates that wait for more before the server moves."""
    abandoned: int = 0
    """Answers that were dropped because they were fewer than the round needs."""
    record: bytes = b""
    """What the scalar log keeps of the round (nothing where tensors travel)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the aggregator counted."""
    contributions: tuple[Json, ...] = ()
    """{client, norm, cosine} of every answer that counted (federation/server.py)."""
    releases: tuple[Release, ...] = ()
    """What the round lets out of private data."""
    summed: tuple[int, ...] | None = None
    """Clients whose contributions came as sums, of which ``updates`` has one a group (None: every
    contribution came by itself)."""

    @property
    def loss(self) -> float:
        """The clients' mean training loss, by example (NaN: no finite one came)."""
        losses = [(u.metrics.get("loss", math.nan), u.n_examples) for u in self.updates]
        finite = [(loss, n) for loss, n in losses if math.isfinite(loss) and n > 0]
        weight = sum(n for _, n in finite)
        return sum(loss * n for loss, n in finite) / weight if weight else math.nan

    @property
    def heard(self) -> tuple[int, ...]:
        return tuple(u.client for u in self.updates) if self.summed is None else self.summed

    @property
    def failed(self) -> tuple[int, ...]:
        """The clients that answered with an error."""
        return tuple(lost.client for lost in self.lost if lost.reason == "error")


def losses_by_reason(report: RoundReport) -> dict[str, int]:
    return dict(Counter(lost.reason for lost in report.lost))
