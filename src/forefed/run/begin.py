"""Before round 1: the head in closed form from all clients' sums (``forefed.start``).

server  asks everybody for sums           -> a few candidate heads
server  asks everybody to try them        -> the one with the least held-out loss
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from forefed.core.errors import UserError
from forefed.core.files import read_table, write_atomic, write_json
from forefed.core.keys import Secret
from forefed.core.types import Json, Params, Transport, drawn_from
from forefed.models.task import Task
from forefed.privacy import Release
from forefed.run.guarding import Heard, ask, ask_total
from forefed.run.record import AGAIN
from forefed.run.summed import Hidden, SummedAnswer, ask_sum
from forefed.start import ClosedForm
from forefed.start.answer import about
from forefed.start.closed_form import SCALES, Head, Solver, choose
from forefed.start.features import names_of_head
from forefed.start.private import private_sums
from forefed.start.sums import Sums

REPORT, TENSORS = "start.json", "start.safetensors"


@dataclass(frozen=True)
class Begun:
    """What the start came to: the head's parameters, the sums of all clients, and its record."""

    head: Params
    total: Sums
    line: Json

    @property
    def notes(self) -> list[str]:
        return list(self.line["notes"])

    def save(self, folder: Path) -> None:
        """Writes both files of a run's folder."""
        tensors = {f"head/{n}": x for n, x in self.head.items()}
        tensors |= {f"sums/{n}": x for n, x in vars(self.total).items()}
        write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
        write_json(folder / REPORT, self.line)


def load_begun(folder: Path) -> Begun | None:
    """What a run began with; None: as its model came.

    Raises:
        UserError: a file of it is damaged or missing.
    """
    path = folder / TENSORS
    if not path.is_file():
        return None
    try:
        tensors = safetensors.torch.load_file(path)
        head = {n.removeprefix("head/"): x for n, x in tensors.items() if n.startswith("head/")}
        sums = {n.removeprefix("sums/"): x for n, x in tensors.items() if n.startswith("sums/")}
        total = Sums(**sums)
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); {AGAIN}") from None
    return Begun(head, total, read_table(folder / REPORT, AGAIN))


def begin(
    start: ClosedForm,
    task: Task,
    transport: Transport,
    deadline_s: float | None,
    hidden: Hidden | None = None,
    secret: Secret | None = None,
    enter: Callable[[Sequence[Release]], None] = lambda _: None,
) -> Begun:
    """Ask, solve, try, choose.

    Args:
        hidden: for sums of which the server sees the total only.
        secret: what the noise of a private start is drawn from.
        enter: writes down what is released, before anything is made of it.

    Raises:
        UserError: rows from which no head can be made, or nobody answers.
    """
    clock = time.perf_counter()
    classes, width = task.params[names_of_head(task)[0]].shape
    total = Sums.zero(classes, width)

    def take(_: int, answer: Params) -> None:
        nonlocal total
        total = total.plus(Sums.unpacked(answer, classes, width))

    members = transport.members()
    heard: Heard | SummedAnswer
    if hidden is None:
        heard = ask(transport, "sums", about(task), {}, 0, members, deadline_s, take)
    else:
        shapes = {n: tuple(x.shape) for n, x in vars(total).items()}
        heard = ask_sum(hidden, transport, "sums", about(task), {}, 0, members, deadline_s, shapes)
        if heard.total:
            total = Sums(**heard.total)
            total.check()
        elif heard.reason:
            raise UserError(f"start: {heard.reason}; see to that, or set start.kind = 'none'")
    if not heard.clients:
        raise UserError(
            f"start: no client answered with sums ({_reasons(heard.lost)}); see to that, or set "
            "start.kind = 'none'"
        )
    if start.private:
        total, release = private_sums(start, total, drawn_from(secret))
        enter([release])
    chosen = solve(start, task, total, transport, heard.clients, deadline_s, hidden)
    line: Json = {
        **chosen.line,
        "clients": len(heard.clients),
        "lost": heard.lost,
        "examples": total.rows,
        "features": width,
        "bytes_up": heard.bytes_up + chosen.line["bytes_up"],
        "bytes_down": heard.bytes_down + chosen.line["bytes_down"],
        "seconds": round(time.perf_counter() - clock, 3),
    }
    return Begun(chosen.head, total, line)


def solve(
    start: ClosedForm,
    task: Task,
    total: Sums,
    transport: Transport,
    clients: Sequence[int],
    deadline_s: float | None,
    hidden: Hidden | None = None,
) -> Begun:
    """The head of these sums; held-out rows of the clients choose among candidates."""
    solver = Solver.of(total, task.label_names)
    candidates = start.candidates()
    heads = [solver.solve(kind, share, start.prior) for kind, share in candidates]
    stacked = {
        "weight": torch.stack([h.weight_CD for h in heads]).float(),
        "bias": torch.stack([h.bias_C for h in heads]).float(),
    }

    each = (len(heads), len(SCALES))
    shapes = {"loss": each, "flat": each, "correct": (len(heads),), "n": ()}
    asked = () if start.private else clients  # losses of held-out rows would have no noise
    unseen = None if start.private else hidden
    heard, tried = ask_total(
        transport, "heads", about(task), stacked, 0, asked, deadline_s, shapes, unseen
    )
    answered = bool(tried)
    tried["classes"] = torch.tensor(float(len(task.label_names)))
    notes = list(solver.notes)
    position, scale, table = _middle(candidates), 1.0, list[Json]()
    if answered and float(tried["n"]):
        position, scale, table = choose(tried, candidates)
    elif len(candidates) > 1:
        notes.append("no client holds rows out, so the head's regularisation was not chosen")
    kind, share = candidates[position]
    line: Json = {
        "kind": "closed_form",
        "solver": kind,
        "regularisation": share,
        "scale": scale,
        "held_out": int(tried["n"]) if answered else 0,
        "tried": table,
        "bytes_up": heard.bytes_up,
        "bytes_down": heard.bytes_down,
        "notes": notes,
        **({"private": True} if start.private else {}),
    }
    return Begun(params_of(task, heads[position].times(scale)), total, line)


def params_of(task: Task, head: Head) -> Params:
    """The head as the task's parameters."""
    weight, bias = names_of_head(task)
    return {
        weight: head.weight_CD.to(task.params[weight]),
        bias: head.bias_C.to(task.params[bias]),
    }


def _middle(candidates: Sequence[tuple[str, float]]) -> int:
    return min(range(len(candidates)), key=lambda i: abs(candidates[i][1] - 0.1))


def _reasons(lost: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in lost.items()) or "there is none"
