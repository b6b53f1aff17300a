"""What one attack came to: how often it succeeds, beside a guess, and on which client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from forefed.core.intervals import Z, wilson
from forefed.core.types import Json

Measure = Literal["share", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Client:
    """On which client's message: its training rows, rows of a step, local steps, and the round."""

    rows: int
    batch: int
    steps: int
    round: int

    clients: int = 1
    """In one message: more than one where the server sees their sum only."""

    def __str__(self) -> str:
        def many(n: int, word: str) -> str:
            return f"{n:,} {word}{'' if n == 1 else 's'}"

        group = f", in a sum of {self.clients:,} clients" if self.clients > 1 else ""
        steps = many(self.steps, "step") if self.steps else "before round 1"
        batch = f", batch {self.batch}" if self.steps else ""
        return f"{many(self.rows, 'row')}{batch}, {steps}{group}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the audit.

    ``value``: the mean over the trials of a success from 0 to 1 ("share"), or of the cosine between
    what was recovered and the truth; ``low``, ``high``: its 95 % interval; ``chance``: what a guess
    reaches that reads no message.
    """

    step: str
    """Of the ladder: "A0" to "A4", "membership", "start"."""
    attack: str
    client: Client
    value: float
    low: float
    high: float
    chance: float
    trials: int
    measure: Measure = "share"
    note: str = ""

    @property
    def leaks(self) -> bool:
        """Is it better than a guess, beyond the luck of the trials?"""
        return self.low > self.chance

    @property
    def gain(self) -> float:
        """0: a guess does as well; 1: the attack never fails."""
        return (self.value - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    def to_json(self) -> Json:
        return {**asdict(self), "leaks": self.leaks}


def finding(
    step: str,
    attack: str,
    client: Client,
    values: Sequence[float],
    chance: float,
    measure: Measure = "share",
    note: str = "",
) -> Finding:
    """The line of these trials; at least one."""
    n = len(values)
    mean = sum(values) / n
    if measure == "share":
        low, high = wilson(mean * n, n)  # wide enough for what lies between 0 and 1, too
    else:
        spread = sum((x - mean) ** 2 for x in values) / max(1, n - 1)
        half = Z * math.sqrt(spread / n)
        low, high = max(-1.0, mean - half), min(1.0, mean + half)
    return Finding(
        step=step,
        attack=attack,
        client=client,
        value=mean,
        low=low,
        high=high,
        chance=chance,
        trials=n,
        measure=measure,
        note=note,
    )
