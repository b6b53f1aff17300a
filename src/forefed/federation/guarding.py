"""A round's step, judged by the clients' held-out rows (``forefed.guard``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from forefed.core.errors import ProtocolError
from forefed.core.keys import Key
from forefed.core.types import Json, Lost, Params, Transport
from forefed.federation.state import RunState
from forefed.federation.summed import Hidden, ask_sum, real
from forefed.guard import HeldOut, vouched
from forefed.local.summed import Shapes
from forefed.wire.questions import decode_answer, encode_question


@dataclass(frozen=True)
class Heard:
    """Who answered a question, and what it cost."""

    clients: tuple[int, ...]
    lost: dict[str, int]
    bytes_up: int
    bytes_down: int


def ask(
    transport: Transport,
    kind: str,
    about: str,
    tensors: Params,
    round: int,
    clients: Iterable[int],
    deadline_s: float | None,
    take: Callable[[int, Params], None],
) -> Heard:
    """Put a question to clients.

    Args:
        take: given every client's answer as it comes; one that it refuses (ProtocolError) is one
            loss, by its reason, as is one that cannot be read.
    """
    question = encode_question(kind, about, tensors)
    heard: list[int] = []
    lost: dict[str, int] = {}
    up = down = 0
    for outcome in transport.ask(question, round, clients, deadline_s):
        down += outcome.bytes_down
        if isinstance(outcome, Lost):
            lost[outcome.reason] = lost.get(outcome.reason, 0) + 1
            continue
        up += outcome.bytes_up
        try:
            take(outcome.client, decode_answer(outcome.payload, kind, about))
            heard.append(outcome.client)
        except ProtocolError:
            lost["transport"] = lost.get("transport", 0) + 1
    return Heard(tuple(sorted(heard)), lost, up, down)


def ask_total(
    transport: Transport,
    kind: str,
    about: str,
    tensors: Params,
    round: int,
    clients: Sequence[int],
    deadline_s: float | None,
    shapes: Shapes,
    hidden: Hidden | None = None,
) -> tuple[Heard, Params]:
    """Put a question to clients whose answers matter as their sum only.

    Args:
        shapes: of the answer's tensors; one that has others is a loss.
        hidden: the server sees nothing but the sum (None: every answer).

    Returns:
        Who answered, and the sum, float64; no tensors where nobody did.
    """
    if hidden is not None:
        came = ask_sum(hidden, transport, kind, about, tensors, round, clients, deadline_s, shapes)
        return Heard(came.clients, came.lost, came.bytes_up, came.bytes_down), real(came.total)
    answers: dict[int, Params] = {}

    def take(client: int, answer: Params) -> None:
        if {n: tuple(x.shape) for n, x in answer.items()} != shapes:
            raise ProtocolError("other losses than were asked for")
        answers[client] = answer

    heard = ask(transport, kind, about, tensors, round, clients, deadline_s, take)
    names = shapes if answers else ()
    total = {n: torch.stack([answers[c][n].double() for c in heard.clients]).sum(0) for n in names}
    return heard, total


def guarded(
    guard: HeldOut,
    transport: Transport,
    about: str,
    key: Key,
    before: RunState,
    after: RunState,
    deadline_s: float | None,
    classes: bool,
    hidden: Hidden | None = None,
) -> tuple[RunState, Json]:
    """The state after the part of the step that the held-out rows like best, and the record of it.

    Where nobody answers, the step is taken.

    Args:
        classes: the loss is one of classes, so there is a least one that rows vouch for
            (``vouched``).
        hidden: for losses that the server sees as their sum only.
    """
    members = transport.members()
    chosen = key.fold("guard", after.round).choice(len(members), min(guard.clients, len(members)))
    sets = [before.params, *(_part(before.params, after.params, s) for s in guard.steps)]
    moved = [n for n, x in after.params.items() if not torch.equal(x, before.params[n])]
    tensors = {f"0/{n}": x for n, x in before.params.items()}
    tensors |= {f"{i}/{n}": sets[i][n] for i in range(1, len(sets)) for n in moved}

    heard, total = ask_total(
        transport,
        "loss",
        about,
        tensors if moved else {},
        after.round,
        [members[i] for i in sorted(chosen)] if moved else [],
        deadline_s,
        {"loss": (len(sets),), "n": ()},
        hidden,
    )
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


def resting(lines: Iterable[Json]) -> int:
    """Rounds in a row, up to the last one, in which no step was taken."""
    count = 0
    for line in lines:
        count = count + 1 if line.get("guard", {}).get("step") == 0 else 0
    return count
