"""What held-out rows decide in a run: every round's step, and at the end between the head alone and
all steps together.

At the end the head is solved again from the features that the adapters make now, as it was at the
start (``head_start.again``). Held-out rows have seen neither, so what they say of both is compared:
the steps stay if the loss is lower and quality is not. Both heads are then solved once more from
all rows. Where the head cannot be solved again (it was trained; ``start.again`` is off; somebody
does not answer any more) the model as it is stands against the head alone; that would gain from all
rows what held-out rows do not see, so the steps have to be better by a standard error.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from forefed.core.keys import Key
from forefed.core.types import Json, Params
from forefed.federation.guarding import Held, Jury, guarded
from forefed.federation.questions import Way
from forefed.federation.star import RunState
from forefed.guard import HeldOut, guard_of, vouched
from forefed.models.bag_of_words import WORDS
from forefed.run.best import evaluate, tests_of
from forefed.run.build import Federation, start_at
from forefed.run.callback import Told
from forefed.run.checkpoint import save_checkpoint
from forefed.run.head_start import again, finish
from forefed.run.start_result import Begun, with_start
from forefed.start import ClosedForm
from forefed.start.answer import about as about_task

ERRORS = 1.0
"""Standard errors by which steps have to have more held-out rows right than the head alone, where
it cannot be solved again."""
COSTS = ("bytes_up", "bytes_down", "forwards", "seconds")


def jury_of(federation: Federation) -> Jury:
    """Whom a run's guard asks, and how."""
    config, objective = federation.config, federation.task.objective
    guard = guard_of(config)
    hostile = 0 if guard is None or guard.f == "auto" else guard.f
    return Jury(
        federation.transport,
        about_task(federation.task),
        config.deadline_s,
        config.data.task.kind == "classification",
        objective.answered,
        Way.of(federation.star),
        hostile,
    )


def guarded_by(
    guard: HeldOut, federation: Federation, before: RunState, after: RunState
) -> tuple[RunState, Json]:
    """A round's step, as its run judges it (``federation.guarding``)."""
    return guarded(guard, jury_of(federation), Key(federation.config.seed), before, after)


def worth_it(guard: HeldOut, jury: Jury, held: Held) -> bool:
    """Are the second of two sets of parameters, the steps, worth more than the first, the head?

    They are if the loss is lower and more rows are right, by a standard error; where rows are not
    right or wrong, if the loss is lower by ``guard.worth``. Nobody's answer is no objection.
    """
    if not held.n:
        return True
    if jury.classes and held.losses[0] <= vouched(held.n):
        return False
    if jury.answered:
        return held.losses[1] < held.losses[0] and held.gained(1) >= ERRORS
    return held.losses[1] <= (1 - guard.worth) * held.losses[0]


def ended(
    federation: Federation, folder: Path, state: RunState, begun: Begun | None, told: Told
) -> tuple[RunState, Begun | None]:
    """The end of a run: whether its steps stay, and the head once more, from all rows.

    May be done again after a kill: it stands in the record when its evaluation does.
    """
    config, task = federation.config, federation.task
    start, guard = start_at(config, task), guard_of(config)
    if begun is None or start is None or not begun.line["held_out"]:
        return state, begun
    if config.codec.sends_slopes or config.download.by_records:
        return state, begun  # others hold the parameters by their log
    begun = replace(begun, folds=None)  # nobody trains any more
    first = with_start(federation.start(), begun)
    decided = begun.finished or "steps" in begun.line
    if not decided and any(not torch.equal(x, first.params[n]) for n, x in state.params.items()):
        if guard is None:
            return state, begun
        begun = _weighed(guard, start, federation, first, state, begun, told)
        begun.save(folder)
        if not begun.line["steps"]["kept"]:
            told("note", left_out(begun.line["steps"]))
    weighed, adapted = "steps" in begun.line, bool(begun.line.get("adapted"))
    if weighed and begun.line["steps"]["kept"] and not adapted:
        return state, begun
    if start.again and not begun.finished:
        told("loading", "solving the head from all rows")
        say, way = partial(told, "starting"), Way.of(federation.star)
        body = _body(federation, state) if adapted else {}
        begun = finish(begun, start, task, federation.transport, config.deadline_s, say, way, body)
        if begun.finished:
            begun.save(folder)
    if not begun.finished and not weighed:
        return state, begun
    params = state.params if adapted else first.params
    state = with_start(replace(state, params=params), begun)
    save_checkpoint(folder, config, state, federation.transport.store)
    mark = "all_rows" if begun.finished else "solved"
    if not tests_of(folder)[-1].get(mark):
        evaluate(federation, folder, state, told, begun.words, mark)
    return state, begun


def _weighed(
    guard: HeldOut,
    start: ClosedForm,
    federation: Federation,
    first: RunState,
    state: RunState,
    begun: Begun,
    told: Told,
) -> Begun:
    """What a run ends with before all rows are learned. Its record says why (``steps``)."""
    config, task, transport = federation.config, federation.task, federation.transport
    way = Way.of(federation.star)
    if start.again and start.then == "frozen":
        told("loading", "solving the head from the features of the trained model")
        say, body = partial(told, "starting"), _body(federation, state)
        solved = again(begun, start, task, transport, config.deadline_s, body, say, way)
        if solved.line.get("adapted"):
            old, new = answers_of(begun.line), answers_of(solved.line)
            steps: Json = {"rows": begun.line["held_out"], "loss": [old["loss"], new["loss"]]}
            kept = new["loss"] <= (1 - guard.worth) * old["loss"]
            for name in sorted({*old} - {"loss"}):
                steps |= {"measure": name, "quality": [old[name], new[name]]}
                kept = kept and new[name] >= old[name]
            costs = {n: solved.line[n] for n in COSTS}
            ends = solved if kept else replace(begun, line={**begun.line, **costs})
            return replace(ends, line={**ends.line, "steps": {"kept": kept, **steps}})
        begun = solved
    # few rows of a client differ, and a trimmed mean of differences would be 0
    jury = replace(jury_of(federation), way=way.anew("end"), hostile=0)
    differ = {n: x for n, x in state.params.items() if not torch.equal(x, first.params[n])}
    told("loading", "weighing the steps against the head alone")
    members = list(transport.members())
    heard, held = jury.ask([first.params, differ], state.of(WORDS), state.round, members)
    steps = {"kept": worth_it(guard, jury, held), "rows": held.n, "lost": heard.lost}
    steps |= held.to_json(1) if held.n else {}
    line = {**begun.line, "steps": steps}
    line["bytes_up"] += heard.bytes_up
    line["bytes_down"] += heard.bytes_down
    return replace(begun, line=line)


def answers_of(line: Json) -> dict[str, float]:
    """What held-out rows have said of the head that a start's record names: its loss, and its
    quality where there is one."""
    if line["share"]:
        found = next(one for one in line["shares"] if one["share"] == line["share"])
    else:
        chosen = (line["solver"], line["regularisation"])
        tried = line["tried"]
        found = next(one for one in tried if (one["solver"], one["regularisation"]) == chosen)
    about = ("solver", "regularisation", "share")
    return {name: float(x) for name, x in found.items() if name not in about}


def left_out(steps: Json) -> str:
    """Why the steps of a run do not stay, in words."""
    said = []
    if "quality" in steps:
        old, new = steps["quality"]
        said.append(f"{steps.get('measure', 'quality')} {new:.3f} ({old:.3f})")
    old, new = steps["loss"]
    said.append(f"loss {new:.3f} ({old:.3f})")
    return (
        "the run ends with the head alone, as the adapters' steps did not earn their place on "
        f"{steps['rows']} held-out rows: with them (without) {', '.join(said)}"
    )


def _body(federation: Federation, state: RunState) -> Params:
    return {n: x for n, x in state.params.items() if n not in federation.task.head}
