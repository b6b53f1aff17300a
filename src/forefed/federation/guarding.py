"""A round's step, judged by the clients' held-out rows (``forefed.guard``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from forefed.core.keys import Key
from forefed.core.types import Json, Params, Transport
from forefed.federation.questions import PLAIN, Question, Way, ask_total
from forefed.federation.state import RunState
from forefed.guard import HeldOut, vouched
from forefed.models.words import WORDS


def guarded(
    guard: HeldOut,
    transport: Transport,
    about: str,
    key: Key,
    before: RunState,
    after: RunState,
    deadline_s: float | None,
    classes: bool,
    way: Way = PLAIN,
) -> tuple[RunState, Json]:
    """The state after the part of the step that the held-out rows like best, and the record of it.

    Where nobody answers, the step is taken.

    Args:
        classes: the loss is one of classes, so there is a least one that rows vouch for
            (``vouched``).
        way: in which answers come.
    """
    members = transport.members()
    chosen = key.fold("guard", after.round).choice(len(members), min(guard.clients, len(members)))
    sets = [before.params, *(_part(before.params, after.params, s) for s in guard.steps)]
    moved = [n for n, x in after.params.items() if not torch.equal(x, before.params[n])]
    tensors = {f"0/{n}": x for n, x in before.params.items()}
    tensors |= {f"{i}/{n}": sets[i][n] for i in range(1, len(sets)) for n in moved}
    tensors |= {f"{WORDS}/{n}": x for n, x in before.of(WORDS).items()}

    asked = [members[i] for i in sorted(chosen)] if moved else []
    question = Question("loss", about, tensors if moved else {}, after.round, asked, deadline_s)
    heard, total = ask_total(transport, question, {"loss": (len(sets),), "n": ()}, way)
    n = float(total["n"]) if total else 0.0
    line: Json = {"step": 1.0 if moved else 0.0, "rows": int(n), "lost": heard.lost}
    line |= {"bytes_up": heard.bytes_up, "bytes_down": heard.bytes_down}
    if n:
        losses = (total["loss"] / n).nan_to_num(torch.inf, torch.inf)
        best = min(range(len(sets)), key=lambda i: (float(losses[i]), i == 0))
        if best and float(losses[best]) > (1 - guard.worth) * float(losses[0]):
            best = 0
            line |= {"reason": f"no part of the step lowers the loss by {guard.worth:.0%}"}
        if classes and float(losses[0]) <= vouched(int(n)):
            best = 0
            line |= {"reason": f"{int(n)} rows cannot tell such a loss from a smaller one"}
        line |= {
            "step": (0.0, *guard.steps)[best],
            "before": float(losses[0]),
            "whole_step": float(losses[1]),
            "after": float(losses[best]),
        }
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
