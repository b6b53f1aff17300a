"""Before round 1: the head in closed form from all clients' sums (``forefed.start``).

server  asks everybody in how many rows each word is  -> the words that count
server  asks everybody for sums                       -> a few candidate heads
server  asks everybody for products, a few times      -> what the words say of the targets
server  asks everybody to try heads and words         -> those with the best held-out answers

After the last round, where adapters have moved, the same with the features that they make
(``again``), words aside; then once more with all rows (``finish``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from forefed.core.errors import UserError
from forefed.core.keys import Secret
from forefed.core.types import Json, Params, Transport, drawn_from
from forefed.federation.folds import Folds, Groups, sets_of
from forefed.federation.questions import PLAIN, Way
from forefed.models.bag_of_words import Words
from forefed.models.task import Task
from forefed.privacy import Release
from forefed.run.start_questions import Asked, Say, packed_bag
from forefed.run.start_result import Begun
from forefed.start import ClosedForm
from forefed.start.answer import ALL, HELD_OUT, TRAINING, targets_of_task
from forefed.start.features import names_of_head
from forefed.start.private import private_sums
from forefed.start.shares import Shares
from forefed.start.solver import Head, Solver
from forefed.start.sums import Sums
from forefed.start.targets import Candidate, Chosen, Targets


def begin(
    start: ClosedForm,
    task: Task,
    transport: Transport,
    deadline_s: float | None,
    words: int = 0,
    say: Say = lambda what, done, of: None,
    way: Way = PLAIN,
    secret: Secret | None = None,
    enter: Callable[[Sequence[Release]], None] = lambda _: None,
    groups: Callable[[Sequence[int]], tuple[Groups, str]] = lambda members: ([members], ""),
) -> Begun:
    """Ask, solve, try, choose.

    Args:
        words: that count beside the features at most; 0: none.
        say: told of progress.
        way: in which answers come.
        secret: what the noise of a private start is drawn from.
        enter: writes down what is released, before anything is made of it.
        groups: of the clients, and perhaps why there is one; where there are several, each has a
            head of its own to train against, solved from the others' rows (``Begun.folds``).

    Raises:
        UserError: rows from which no head can be made, or nobody answers.
    """
    clock = time.perf_counter()
    members = list(transport.members())
    asked = Asked(task, transport, deadline_s, members, say, way, check=start.check)
    asked.hostile = 0 if start.f == "auto" else start.f
    asked.groups, alone = groups(members)
    bag = asked.bag(words) if words else None
    targets = targets_of_task(task)
    parts = _training(start, asked, targets, secret, enter)
    targets.usable(Sums.over(parts))  # before more is asked
    said = [] if bag is None else asked.words(bag, parts, TRAINING)
    total = Sums.over(parts)
    # of sums with noise: who has rows of which class is nobody's business
    notes = [*targets.usable(total), *_said(asked.left_out)]
    if alone:
        notes.append(f"all clients train against one head, as {alone} (start.folds)")
    solver = Solver.of(total, targets.unit)
    own = said[0] if said else None
    head, chosen_words, chosen = solve(start, solver, asked, own, [*notes, *solver.notes])
    folds = None
    if len(parts) > 1:
        folds, why = _folds(start, task, asked.groups, parts, said[1:], chosen)
        chosen["notes"].append(why)
    line: Json = {
        **chosen,
        "clients": len(asked.members),
        "lost": asked.lost,
        **({"left_out": list(asked.left_out)} if asked.left_out else {}),
        "examples": total.rows,
        "features": len(total.x),
        "words": 0 if chosen_words is None else len(chosen_words.bag),
        **({"folds": [len(some) for some in asked.groups]} if folds else {}),
        "bytes_up": asked.bytes_up,
        "bytes_down": asked.bytes_down,
        "forwards": float(total.rows + chosen["held_out"]),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    return Begun(params_of(task, head), total, line, chosen_words, folds)


def _folds(
    start: ClosedForm,
    task: Task,
    groups: Groups,
    parts: Sequence[Sums],
    said: Sequence[Words],
    line: Json,
) -> tuple[Folds | None, str]:
    """The head for every group, of the others' rows, as ``line`` has chosen that of all; None where
    those of some group give none. And what is said of it.

    Args:
        parts: sums of every group.
        said: what the words of the others say, by group; nothing: no words count.
    """
    targets, heads = targets_of_task(task), []
    sizes = ", ".join(str(len(some)) for some in groups)
    for some in sets_of(len(groups))[1:]:
        others = Sums.over(parts[j] for j in some)
        try:
            targets.usable(others)
            solver = Solver.of(others, targets.unit)
        except UserError as error:
            text = "all clients train against one head, as the others' rows of a group give none"
            return None, f"{text} ({error})"
        heads.append(params_of(task, head_of(targets, solver, line, start.prior)))
    words = [_scaled(own, line).weight for own in said] if line["share"] else []
    rates = f", at {start.folds_rate:g} times their rates" if start.folds_rate != 1 else ""
    return Folds.of(groups, heads, words, start.folds_rate), (
        f"clients train against heads that have not seen their rows: in {len(groups)} groups of "
        f"{sizes}, against the head of the others' rows{rates} (start.folds)"
    )


def _training(
    start: ClosedForm,
    asked: Asked,
    targets: Targets,
    secret: Secret | None,
    enter: Callable[[Sequence[Release]], None],
) -> list[Sums]:
    """The training rows' sums of every group, with noise where the start is private.

    Raises:
        UserError: there is no sum.
    """
    shares = Shares.of(start, asked.way.channel.least)
    if shares is not None:
        noisy = asked.noisy(TRAINING, shares)
        _check_heard(asked)
        total, release = shares.opened(noisy, len(asked.members), targets, drawn_from(secret))
    else:
        parts = asked.sums(TRAINING, judge=True)
        _check_heard(asked)
        if not start.private:
            return parts
        total, release = private_sums(start, targets, Sums.over(parts), drawn_from(secret))
    enter([release])
    return [total]


def _check_heard(asked: Asked) -> None:
    """Raises UserError: there is no sum."""
    if asked.reason:
        raise UserError(f"start: {asked.reason}; see to that, or set start.kind = 'none'")
    if not asked.members:
        raise UserError(
            f"start: no client answered with sums ({_reasons(asked)}); see to that, or set "
            "start.kind = 'none'"
        )


def again(
    begun: Begun,
    start: ClosedForm,
    task: Task,
    transport: Transport,
    deadline_s: float | None,
    body: Params,
    say: Say = lambda what, done, of: None,
    way: Way = PLAIN,
) -> Begun:
    """Solved and chosen as before, from the features of a body that has moved (``adapted`` in its
    record); what words say is known, how much it counts is chosen anew.

    Where somebody who has answered before does not any more, it stays as it was.

    Args:
        body: its parameters.
    """
    clock = time.perf_counter()
    members = begun.among(transport.members())
    asked = Asked(task, transport, deadline_s, members, say, way, when="again", body=body)
    asked.check, asked.hostile = start.check, 0 if start.f == "auto" else start.f
    (total,) = asked.sums(TRAINING, judge=True)
    if len(asked.members) < begun.line["clients"]:
        return replace(begun, line=_with_costs(begun.line, asked, 0, clock))
    targets = targets_of_task(task)
    solver = Solver.of(total, targets.unit)
    head, words, chosen = solve(start, solver, asked, _unscaled(begun), solver.notes)
    line = _with_costs(begun.line, asked, total.rows + chosen["held_out"], clock)
    if chosen["held_out"] < line["held_out"]:
        return replace(begun, line=line)
    return Begun(params_of(task, head), total, {**line, **chosen, "adapted": True}, words)


def finish(
    begun: Begun,
    start: ClosedForm,
    task: Task,
    transport: Transport,
    deadline_s: float | None,
    say: Say = lambda what, done, of: None,
    way: Way = PLAIN,
    body: Params | None = None,
) -> Begun:
    """The same solver, regularisation, scale and words from all rows, held-out ones too.

    Where somebody who has answered before does not any more, it stays as it was.

    Args:
        body: the parameters that its features were read with; None: the run's first ones.
    """
    clock = time.perf_counter()
    members = begun.among(transport.members())
    asked = Asked(task, transport, deadline_s, members, say, way, when="end", body=body or {})
    line = begun.line
    asked.check, asked.hostile = start.check, 0 if start.f == "auto" else start.f
    (held_out,) = asked.sums(HELD_OUT)  # of too few rows a client to be judged by themselves
    total = begun.total.plus(held_out)
    said = None
    if begun.words is not None:
        found = asked.words(begun.words.bag, [total], ALL)
        said = _scaled(found[0], line) if found else None
    if len(asked.members) < line["clients"] or (said is None) != (begun.words is None):
        text = "somebody was missing when the head was to be solved from all rows"
        line = _with_costs(line, asked, 0, clock)
        return replace(begun, line={**line, "notes": [*line["notes"], text]})
    targets = targets_of_task(task)
    head = head_of(targets, Solver.of(total, targets.unit), line, start.prior)
    line = _with_costs(line, asked, held_out.rows, clock)
    line = {**line, "all_rows": True, "examples": total.rows}
    return Begun(params_of(task, head), total, line, said)


def _said(left_out: Sequence[int]) -> list[str]:
    """Who was left out, for people."""
    if not left_out:
        return []
    names = ", ".join(map(str, left_out))
    some = "a client" if len(left_out) == 1 else f"{len(left_out)} clients"
    return [f"the head was solved without {some} whose sums contradict the others' ({names})"]


def _with_costs(line: Json, asked: Asked, forwards: int, clock: float) -> Json:
    """A start's record with what more questions have cost."""
    return {
        **line,
        "bytes_up": line["bytes_up"] + asked.bytes_up,
        "bytes_down": line["bytes_down"] + asked.bytes_down,
        "forwards": line["forwards"] + forwards,
        "seconds": round(line["seconds"] + time.perf_counter() - clock, 3),
    }


def words_again(
    begun: Begun, task: Task, transport: Transport, members: Sequence[int], total: Sums, most: int
) -> Words | None:
    """What the words of these clients alone say; None where none counted."""
    if begun.words is None:
        return None
    asked = Asked(task, transport, None, members)
    found = asked.words(asked.bag(most), [total], ALL if begun.finished else TRAINING)
    return _scaled(found[0], begun.line) if found else None


def solve(
    start: ClosedForm, solver: Solver, asked: Asked, said: Words | None, notes: Sequence[str]
) -> tuple[Head, Words | None, Json]:
    """The head of these sums; held-out rows of the clients choose among candidates.

    Returns:
        The head, the words' part (None: they do not help), and the record of it.
    """
    targets, notes = asked.targets, list(notes)
    candidates = targets.candidates(start.solver, start.regularisation)
    heads = [targets.head(solver, candidate, start.prior) for candidate in candidates]
    stacked = {
        "weight": torch.stack([h.weight_CD for h in heads]).float(),
        "bias": torch.stack([h.bias_C for h in heads]).float(),
    }
    if said is not None:
        stacked |= {**packed_bag(said.bag), "said": said.weight}
    shapes, tried = targets.shapes(len(heads), said is not None), Params()
    if not start.private:  # losses of held-out rows would have no noise
        _, tried = asked.losses(stacked, "trying heads on held-out rows", shapes)
    held_out = int(tried["n"]) if tried else 0
    chosen = Chosen(position=_middle(candidates))
    if held_out:
        chosen = targets.choose(tried, candidates)
    elif len(candidates) > 1:
        notes.append("no client holds rows out, so the head's regularisation was not chosen")
    kind, regularisation = candidates[chosen.position]
    line: Json = {
        "kind": "closed_form",
        "solver": kind,
        "regularisation": regularisation,
        "scale": chosen.scale,
        "shift": list(chosen.shift),
        "share": chosen.share,
        "scale_with_words": chosen.together,
        "shift_with_words": list(chosen.shift_with_words),
        "held_out": held_out,
        "tried": chosen.tried,
        "shares": chosen.shares,
        "notes": notes,
        **({"private": True} if start.private else {}),
    }
    words = _scaled(said, line) if said is not None and chosen.share else None
    return heads[chosen.position].times(chosen.scale, _shift(line, "shift")), words, line


def head_of(targets: Targets, solver: Solver, line: Json, prior: str) -> Head:
    """The head that a record names, of these sums."""
    head = targets.head(solver, (line["solver"], line["regularisation"]), prior)
    return head.times(line["scale"], _shift(line, "shift"))


def _scaled(said: Words, line: Json) -> Words:
    """The words' part as it is added to a head of ``scale`` and ``shift``."""
    together, times = line["scale_with_words"], line["scale_with_words"] / line["scale"]
    shift = _shift(line, "shift_with_words") - times * _shift(line, "shift")
    own = shift.float() if bool(shift.any()) else None
    return Words(said.bag, said.weight * (together * line["share"]), times, own)


def _unscaled(begun: Begun) -> Words | None:
    """What a start's words say, before it is known how much that counts; None: nothing."""
    if begun.words is None:
        return None
    counted = begun.line["scale_with_words"] * begun.line["share"]
    return Words(begun.words.bag, begun.words.weight / counted)


def _shift(line: Json, name: str) -> Tensor:
    """What is added to logits, [C] or []."""
    return torch.tensor(line.get(name) or 0.0, dtype=torch.float64)


def params_of(task: Task, head: Head) -> Params:
    """The head as the task's parameters."""
    weight, bias = names_of_head(task)
    return {
        weight: head.weight_CD.to(task.params[weight]),
        bias: head.bias_C.to(task.params[bias]),
    }


def _middle(candidates: Sequence[Candidate]) -> int:
    return min(range(len(candidates)), key=lambda i: abs(candidates[i][1] - 0.1))


def _reasons(asked: Asked) -> str:
    counted = ", ".join(f"{n} {reason}" for reason, n in asked.lost.items()) or "there is none"
    return f"{counted}: {asked.why}" if asked.why else counted
