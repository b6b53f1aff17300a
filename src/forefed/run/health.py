"""Does a run still learn? What ends it early, and what it must not be called at its end.

A run *diverged* when its parameters or its test loss are no numbers any more, when the parameters
have grown absurdly, or when its losses stay far above the loss before the first round. Nobody is
stopped for a bad round: clients with few classes see high losses for good reason, so only several
rounds in a row count, and only losses that no untrained model has.

Everything is a function of what the record says, so a resumed run comes to the same end.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

from forefed.core import trees
from forefed.core.metrics import ACCURACY, Metric
from forefed.core.types import Json, Params

SEVERAL = 3
"""Rounds or evaluations in a row."""
FACTOR, MARGIN = 5.0, 1.0
"""A loss explodes above FACTOR x (the loss before the first round) + MARGIN (nats)."""
ABSURD = 1e4
"""Norm of the parameters, as a multiple of their first norm or of 1, whichever is larger."""

DIVERGED, UNHEARD, NOT_TRAINED = "diverged", "unheard", "not trained"


@dataclass(frozen=True)
class Ending:
    """Why a run is not called "finished"."""

    status: str
    reason: str


@dataclass(frozen=True)
class Health:
    """What is remembered of the rounds so far.

    ``first``: the evaluation before the first round; ``losses``, ``tests``: the last few mean
    training losses and evaluations; ``norm``: of the parameters after the last round.
    """

    first_norm: float
    decides: Metric = ACCURACY
    first: Json = field(default_factory=dict)
    round: int = 0
    norm: float = 0.0
    losses: tuple[float, ...] = ()
    tests: tuple[Json, ...] = ()
    replies: int = 0
    steps: int = 0
    skipped: int = 0
    abandoned: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    why: str = ""

    def tested(self, line: Json) -> Health:
        """After an evaluation on the test rows."""
        if line["round"] == 0:
            return replace(self, first=line)
        return replace(self, tests=(*self.tests, line)[-SEVERAL:])

    def after(self, line: Json) -> Health:
        """After a round."""
        loss = _number(line.get("loss"))
        losses = self.losses if math.isnan(loss) else (*self.losses, loss)[-SEVERAL:]
        return replace(
            self,
            round=line["round"],
            norm=_number(line.get("norm", 0.0)),
            losses=losses,
            replies=self.replies + line.get("replies", 0),
            steps=self.steps + line.get("steps", 0),
            skipped=self.skipped + line.get("skipped", 0),
            abandoned=self.abandoned + line.get("abandoned", 0),
            lost=self.lost + Counter(line.get("lost") or {}),
            why=next(iter((line.get("why") or {}).values()), self.why),
        )

    @property
    def bound(self) -> float:
        """Losses above it explode; infinite where the first loss is no number."""
        first = _number(self.first.get("loss"))
        return FACTOR * first + MARGIN if math.isfinite(first) else math.inf

    @property
    def worrying(self) -> bool:
        """Is the last round one whose parameters should not replace better ones?"""
        return bool(self.losses) and self.losses[-1] > self.bound

    def diverged(self) -> Ending | None:
        """The run ends here, if it has diverged."""
        where = f"in round {self.round}"
        if self.round and not math.isfinite(self.norm):
            return _diverged(f"{where} the parameters were not finite")
        if self.norm > ABSURD * max(1.0, self.first_norm):
            grown = f"{self.first_norm:.3g} to {self.norm:.3g}"
            return _diverged(f"{where} the norm of the parameters had grown from {grown}")
        last = self.tests[-1] if self.tests else {}
        if last.get("round") == self.round and self._broken(last):
            return _diverged(f"{where} the test loss was not finite")
        if len(self.losses) == SEVERAL and min(self.losses) > self.bound:
            return _diverged(self._above("training", self.losses))
        losses = tuple(_number(test.get("loss")) for test in self.tests)
        if len(losses) == SEVERAL and min(losses) > self.bound and self._no_better():
            return _diverged(self._above("test", losses))
        return None

    def at_the_end(self, moved: bool, kept: int | None = None) -> Ending | None:
        """What is wrong with a run whose rounds are over.

        Args:
            moved: did any parameter?
            kept: steps that the guard let through; None: nothing guards.
        """
        if not self.replies:
            lost = ", ".join(f"{count} {reason}" for reason, count in self.lost.most_common())
            said = f" (lost: {lost}{'; ' + self.why if self.why else ''})" if lost else ""
            few = f"; {self.abandoned} answers were fewer than cohort_min" if self.abandoned else ""
            reason = f"nobody's answer counted in any of {self.round} rounds{said}{few}"
            return Ending(UNHEARD, reason)
        if not moved:
            why = "every round was abandoned or waited for more answers"
            if self.steps and self.skipped == self.steps:
                why = f"none of {self.steps} steps had a finite result"
            elif kept == 0:
                why = (
                    "the guard left every step out, as none lowered the clients' held-out loss by "
                    "enough; more rows or another client.optimiser.lr may change that, and "
                    "guard.kind = 'none' takes every step"
                )
            elif self.steps:
                why = "the steps were too small to change a number; raise client.optimiser.lr"
            reason = f"no parameter has moved in {self.round} rounds: {why}"
            return Ending(NOT_TRAINED, reason)
        last = _number(self.tests[-1].get("loss")) if self.tests else math.nan
        if last > self.bound and self._no_better():
            return _diverged(self._above("test", (last,)))
        return None

    def _broken(self, test: Json) -> bool:
        was = math.isfinite(_number(self.first.get("loss")))
        return was and bool(test.get("n")) and not math.isfinite(_number(test.get("loss")))

    def _no_better(self) -> bool:
        """Has the last test found nothing learned? (A sure model can be right at a high loss.)"""
        return not self.decides.better(self.tests[-1], self.first)

    def _above(self, what: str, losses: tuple[float, ...]) -> str:
        shown = ", ".join(f"{loss:.3g}" for loss in losses)
        return (
            f"up to round {self.round} the {what} loss was {shown}, and it began at "
            f"{_number(self.first.get('loss')):.3g}"
        )


def norm_of(params: Params) -> float:
    """Of all parameters, the same whatever their order: nine digits, as rounding depends on it."""
    squares = math.fsum(trees.dot({n: x}, {n: x}) for n, x in sorted(params.items()))
    return float(f"{math.sqrt(squares):.9g}") if math.isfinite(squares) else math.nan


def _diverged(reason: str) -> Ending:
    return Ending(DIVERGED, f"{reason}; lower client.optimiser.lr or server.lr")


def _number(value: object) -> float:
    """A number of a record; NaN where it is null."""
    return float(value) if isinstance(value, int | float) else math.nan
