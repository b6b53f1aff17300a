"""The slot ``select``: who takes part in a round.

What may be claimed for it is part of the contract: privacy is amplified by sampling only where
every member is drawn by itself, with one probability, and nobody but the server can know who was
drawn (``probability``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from forefed.core.settings import Choice
from forefed.core.types import ServerContext


class Selector(Choice):
    """Base of the ways to draw a cohort."""

    @abstractmethod
    def select(self, members: Sequence[int], size: int, ctx: ServerContext) -> list[int]:
        """The clients of a round, in ascending order of their place among the members.

        Args:
            members: who is there now.
            size: how many are wanted, or expected.
            ctx: ``key`` is the round's, which everybody knows; ``secret`` is the server's.
        """

    def probability(self, members: int, size: int) -> float | None:
        """The chance q of each of so many members, where accounting may claim it: drawn one by one
        and from a secret. None: no amplification may be claimed."""
        return None
