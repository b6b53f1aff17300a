"""Steps of a run, judged by the clients' held-out rows (``forefed.guard``): every round's (by some
clients), and at the end all of them together (by all clients)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forefed.aggregate.aggregator import share_of
from forefed.core.keys import Key
from forefed.core.types import Json, Params, Transport
from forefed.federation.questions import PLAIN, Heard, Question, Way, ask_total
from forefed.federation.state import RunState
from forefed.guard import HeldOut, vouched
from forefed.models.bag_of_words import WORDS


@dataclass(frozen=True)
class Held:
    """What held-out rows say of sets of parameters, summed over clients.

    Attributes:
        n: terms of the loss; 0: nobody has answered.
        losses: means, by set.
        right: rows that are right, by set; None: rows of this task are not right or wrong.
        apart: squared differences, row by row, from the first set's.
    """

    n: int
    losses: list[float]
    right: list[float] | None = None
    apart: list[float] | None = None

    def gained(self, i: int) -> float:
        """By how many standard errors set ``i`` has more rows right than the first one.

        Of a difference of 0 and 1 row by row, the sum of squares counts the rows in which two sets
        differ, and is the variance of their difference where neither is better (McNemar's test,
        Psychometrika 12, 1947). 0 where there is nothing to count.
        """
        if self.right is None or self.apart is None or self.apart[i] <= 0:
            return 0.0
        return (self.right[i] - self.right[0]) / float(self.apart[i] ** 0.5)

    def to_json(self, i: int) -> Json:
        """What is kept of the first set and of set ``i``."""
        line: Json = {"loss": [self.losses[0], self.losses[i]]}
        if self.right is not None and self.apart is not None:
            quality = [self.right[0] / self.n, self.right[i] / self.n]
            line |= {"quality": quality, "apart": self.apart[i]}
        return line


@dataclass(frozen=True)
class Jury:
    """Whom held-out rows are asked of, and about what.

    Attributes:
        about: digest of model and pooling.
        classes: the loss is one of classes, so there is a least one that rows vouch for
            (``vouched``).
        answered: rows are right or wrong, too (``Objective.points``).
        way: in which answers come.
        hostile: clients that may lie in their answers, a number or a share of all; 0: nobody.
    """

    transport: Transport
    about: str
    deadline_s: float | None = None
    classes: bool = False
    answered: bool = False
    way: Way = PLAIN
    hostile: int | float = 0

    def ask(
        self, sets: Sequence[Params], words: Params, round: int, clients: Sequence[int]
    ) -> tuple[Heard, Held]:
        """
        Args:
            sets: of parameters; a later one names what differs from the one before it.
            words: what words add to the logits, as it travels; none: nothing.
        """
        tensors = {f"{i}/{n}": x for i, given in enumerate(sets) for n, x in given.items()}
        tensors |= {f"{WORDS}/{n}": x for n, x in words.items()}
        shapes: dict[str, tuple[int, ...]] = {"loss": (len(sets),), "n": ()}
        shapes |= {"right": (len(sets),), "apart": (len(sets),)} if self.answered else {}
        question = Question("loss", self.about, tensors, round, clients, self.deadline_s)
        of = len(self.transport.members()) if self.hostile else 0
        liars = (share_of(self.hostile, of), of) if self.hostile else None
        heard, total = ask_total(self.transport, question, shapes, self.way, hostile=liars)
        n = float(total["n"]) if total else 0.0
        if not n:
            return heard, Held(0, [])
        losses: Tensor = (total["loss"] / n).nan_to_num(torch.inf, torch.inf)
        counts = [total[x].tolist() for x in ("right", "apart")] if self.answered else [None, None]
        return heard, Held(int(n), losses.tolist(), *counts)


def guarded(
    guard: HeldOut, jury: Jury, key: Key, before: RunState, after: RunState
) -> tuple[RunState, Json]:
    """The state after the part of the step that the held-out rows like best, and the record of it:
    the least loss among those that do not have fewer rows right by more than a standard error.

    Where nobody answers, the step is taken.
    """
    moved = [n for n, x in after.params.items() if not torch.equal(x, before.params[n])]
    if not moved:
        return after, {"step": 0.0, "rows": 0, "lost": {}, "bytes_up": 0, "bytes_down": 0}
    members = jury.transport.members()
    chosen = key.fold("guard", after.round).choice(len(members), min(guard.clients, len(members)))
    sets = [before.params, *(_part(before.params, after.params, s) for s in guard.steps)]
    given = [sets[0], *({n: x[n] for n in moved} for x in sets[1:])]
    asked = [members[i] for i in sorted(chosen)]
    heard, held = jury.ask(given, before.of(WORDS), after.round, asked)

    line: Json = {"step": 1.0, "rows": held.n, "lost": heard.lost}
    line |= {"bytes_up": heard.bytes_up, "bytes_down": heard.bytes_down}
    if held.n:
        losses = held.losses
        fit = [i for i in range(len(sets)) if held.gained(i) >= -1]
        best = min(fit, key=lambda i: (losses[i], i == 0))
        if best == 0 and len(fit) < len(sets):
            line |= {"reason": "fewer held-out rows are right, by more than a standard error"}
        if best and losses[best] > (1 - guard.worth) * losses[0]:
            best = 0
            line |= {"reason": f"no part of the step lowers the loss by {guard.worth:.0%}"}
        if jury.classes and losses[0] <= vouched(held.n):
            best = 0
            line |= {"reason": f"{held.n} rows cannot tell such a loss from a smaller one"}
        line |= {
            "step": (0.0, *guard.steps)[best],
            "before": losses[0],
            "whole_step": losses[1],
            "after": losses[best],
        }
        if held.right is not None:
            line |= {"right": held.right, "apart": held.apart}
        after = replace(after, params=sets[best])
    return after, line


def _part(before: Params, after: Params, step: float) -> Params:
    if step == 1:
        return after
    return {n: x + step * (after[n] - x) for n, x in before.items()}


LEFT_OUT = (
    "the head alone is what these data give: in {rounds} round(s) no step of the adapters lowered "
    "the clients' held-out loss by enough, so all were left out; more rows or another rate "
    "(client.optimiser.lr) may change that"
)


def steps_kept(lines: Iterable[Json]) -> int | None:
    """Rounds whose step was taken, in part or whole; None: no guard has judged any."""
    steps = [line["guard"]["step"] for line in lines if "guard" in line]
    return sum(step > 0 for step in steps) if steps else None


def resting(lines: Iterable[Json]) -> int:
    """Rounds in a row, up to the last one, in which no step was taken."""
    count = 0
    for line in lines:
        count = count + 1 if line.get("guard", {}).get("step") == 0 else 0
    return count
