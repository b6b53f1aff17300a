"""The slot ``schedule`` of every optimiser: how its rates move over the rounds of a run.

Pieces that follow one another, as Optax joins schedules (``join_schedules``): each gives the factor
on the rates in its own rounds, and the last one has the rest of the run.

    client.optimiser.schedule = [{kind = "warm_up", rounds = 2}, "cosine"]

A factor is a function of the round and of ``rounds`` only, so clients, the server and a replay have
the same one, and a run that goes on has it too. (``rounds`` is what was planned; a run that ends
early does not fall faster.)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from forefed.core.settings import Choice, Registry

Factor = Annotated[float, Field(ge=0, le=1)]


class Schedule(Choice):
    """Base of the pieces."""

    rounds: Annotated[int, Field(ge=1)] | None = None
    """How many it lasts; None: all that are left, which only the last piece has."""

    @abstractmethod
    def factor(self, done: int, of: int) -> float:
        """Factor on the rates after ``done`` of the piece's ``of`` rounds; after all of them it is
        what stays, where no piece follows."""


class Constant(Schedule):
    """One factor."""

    kind: Literal["constant"] = "constant"
    value: Factor = 1.0

    def factor(self, done: int, of: int) -> float:
        return self.value


class WarmUp(Schedule):
    """Rates rise in even steps; the first round after it has them in full."""

    kind: Literal["warm_up"] = "warm_up"
    rounds: Annotated[int, Field(ge=1)] | None = 2

    def factor(self, done: int, of: int) -> float:
        return (done + 1) / (of + 1)


class Linear(Schedule):
    """Rates fall in even steps towards ``end``, which the round after the last one would have."""

    kind: Literal["linear"] = "linear"
    start: Factor = 1.0
    end: Factor = 0.0

    def factor(self, done: int, of: int) -> float:
        return self.start + (self.end - self.start) * (done / of)


class Cosine(Schedule):
    """Rates fall along half a cosine, slowly at first and at the end."""

    kind: Literal["cosine"] = "cosine"
    start: Factor = 1.0
    end: Factor = 0.0

    source: ClassVar[str] = "Loshchilov and Hutter, arXiv 1608.03983"

    def factor(self, done: int, of: int) -> float:
        # Rounded, as the last digit of a cosine differs between mathematical libraries, and a
        # server may replay what a client did.
        fallen = round((1 - math.cos(math.pi * done / of)) / 2, 9)
        return self.start + (self.end - self.start) * fallen


SCHEDULES: Registry[Schedule] = Registry("schedule", [Constant, WarmUp, Linear, Cosine])


def factor_of(pieces: Sequence[Schedule], round: int, rounds: int) -> float:
    """The factor on the rates in a round (counted from 1) of a run of so many; 1 without pieces.

    A piece that would begin behind the end of the run is never reached; what the last piece ends
    with stays.
    """
    done, left, stays = round - 1, rounds, 1.0
    for piece in pieces:
        of = max(left if piece.rounds is None else piece.rounds, 1)
        if done < of:
            return piece.factor(done, of)
        stays = piece.factor(of, of)
        done, left = done - of, left - of
    return stays


def conflicts(pieces: Sequence[Schedule], place: str) -> Iterator[str]:
    """What does not fit in a schedule that stands at ``place``."""
    if any(piece.rounds is None for piece in pieces[:-1]):
        yield f"{place}: only the last piece has all rounds that are left; give the others rounds"
