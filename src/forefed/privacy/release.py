"""One use of a mechanism on private data: what an accountant adds up, and a ledger keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Unit = Literal["client", "example"]


@dataclass(frozen=True, kw_only=True)
class Release:
    """A sum with Gaussian noise, seen by whoever is named as the adversary.

    Neighbours are data with and without one unit, whose contribution is zero where it is absent;
    numbers of clients and of their rows count as known.

    Attributes:
        unit: what one more or less of is hidden: a client with all its rows, or one example.
        sigma: standard deviation of the noise over the clip bound (noise multiplier); 0: no
            noise, so nothing is hidden.
        q: the chance that a unit takes part, where that may be claimed (Poisson sampling in
            secret); 1: it takes part.
        count: sums in a row, each with noise of its own (the steps of a round).
        round: in which they were made; 0: before the first.
        cap: rounds in which one unit takes part at most.
        adversary: who sees them.
        tag: names the sums themselves, so that the same ones made again (after a stop) are the
            same release. Tells whoever lacks the secret nothing.
    """

    unit: Unit
    sigma: float
    adversary: str
    q: float = 1.0
    count: int = 1
    round: int = 0
    cap: int | None = None
    mechanism: str = "Gaussian"
    tag: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def capped(releases: Iterable[Release]) -> list[Release]:
    """The releases in which one unit takes part at most: the noisiest are left out."""
    kept: list[Release] = []
    of_rounds: dict[int | None, list[Release]] = {}
    for release in releases:
        of_rounds.setdefault(release.cap, []).append(release)
    for cap, some in of_rounds.items():
        first = sorted(some, key=lambda r: (r.sigma, r.round))
        rounds = list(dict.fromkeys(r.round for r in first))
        allowed = set(rounds if cap is None else rounds[:cap])
        kept += [r for r in some if r.round in allowed]
    return kept
