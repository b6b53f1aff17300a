"""The slot ``guard``: may a round's step be taken?

A trust region on data that nobody trains on: the server asks clients for the loss of their held-out
rows (``data.client_test_fraction``) before and after the step, and takes the step, a half or a
quarter of it, or none; none, too, where the loss of classes is less than so many rows can vouch
for. So the held-out loss of those who are asked never rises, the last parameters
are the best, and a run that no longer gets better ends. A loss may fall while fewer rows are right,
so where rows are right or wrong clients count those, too: no step may cost more of them than a
standard error. After the last round all clients judge all steps together, with a head that is
solved again, against the one that they began with (``run/guard_decisions.py``). Sums travel; no
test row is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.aggregate.aggregator import Hostile
from forefed.core.settings import Choice, Registry


def vouched(rows: int) -> float:
    """The least mean loss (nats) of classes that so many rows can tell from a smaller one.

    Rows without an error leave one of 1 / (rows + 2) to be expected (Laplace's rule of succession);
    the loss of whoever is as sure as that is its entropy. A step below it is one of certainty only.
    """
    wrong = 1 / (rows + 2)
    return -wrong * math.log(wrong) - (1 - wrong) * math.log1p(-wrong)


class Guard(Choice):
    """Base of the guards."""


class NoGuard(Guard):
    """Every step is taken."""

    kind: Literal["none"] = "none"


class HeldOut(Guard):
    """The step, a part of it, or none: whatever has the least loss on held-out rows."""

    kind: Literal["held_out"] = "held_out"
    clients: Annotated[int, Field(ge=1)] = 20
    """Clients asked after each round, drawn anew (all, where there are fewer)."""
    patience: Annotated[int, Field(ge=1)] | None = 1
    """The run ends after so many rounds in a row without a step; None: never."""
    worth: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The part of the held-out loss by which a step has to lower it; less is what rows that happen
    to be asked explain, and no reason to go on."""

    f: Hostile | Literal["auto"] = "auto"
    """Clients that may lie in their answers: a number, or a share of all. What they say of a row is
    then a trimmed mean (federation/votes.py). "auto": as the aggregator assumes, where it assumes
    any and single answers are seen."""

    steps: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.25)
    """Parts of the step that are tried besides none."""

    def conflicts(self, config: Any) -> Iterator[str]:
        if config.codec.sends_slopes or config.download.by_records:
            yield (
                "guard.kind = 'held_out': a log of slopes cannot say that a step was shortened; "
                "set guard.kind = 'none', or codec.kind = 'dense' and download.kind = 'dense'"
            )
        if config.sharing.keeps_trained:
            yield (
                "guard.kind = 'held_out': clients with parameters of their own each have another "
                "model, and a question carries one; set guard.kind = 'none'"
            )
        if not config.topology.awaits:
            yield (
                f"guard.kind = 'held_out': with topology.kind = '{config.topology.kind}' a step "
                "that is taken back would take back answers on their way; set guard.kind = 'none'"
            )
        if self.f not in ("auto", 0) and config.channel.sums:
            yield (
                "guard.f: who lies is found by looking at single answers, and channel.kind = "
                f"'{config.channel.kind}' hides them; leave it out"
            )
        if config.data.client_test_fraction == 0:
            yield (
                "guard.kind = 'held_out' needs rows that clients hold out; set "
                "data.client_test_fraction, for example 0.2"
            )


class Auto(HeldOut):
    """held_out where clients hold rows out, answer questions and send tensors; none elsewhere."""

    kind: Literal["auto"] = "auto"  # type: ignore[assignment]

    def conflicts(self, config: Any) -> Iterator[str]:
        return iter(())


def guard_of(config: Any) -> HeldOut | None:
    """What judges the steps of a run with this configuration; None: nobody."""
    guard = config.guard
    if not isinstance(guard, HeldOut):
        return None
    # losses of held-out rows would be releases that nobody accounts for
    private = any(m.private for m in config.modifiers)
    off = not config.topology.central or private or config.client.brought
    off = off or any(HeldOut().conflicts(config))
    if isinstance(guard, Auto) and off:
        return None
    if guard.f == "auto":
        seen = not config.channel.sums
        guard = guard.model_copy(update={"f": getattr(config.aggregator, "f", 0) if seen else 0})
    return guard


GUARDS: Registry[Guard] = Registry("guard", [Auto, NoGuard, HeldOut])
