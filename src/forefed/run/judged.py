"""What held-out rows decide in a run: every round's step, and at the end between the head alone and
all steps together.

The head alone has an advantage that no held-out row sees: it is solved once more, from all rows,
where adapters are fitted to those that are not held out. So the steps have to earn their place
(``worth_it``), and where they do not the run ends with the head alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from forefed.core.keys import Key
from forefed.core.types import Json
from forefed.federation.guarding import Held, Jury, guarded
from forefed.federation.questions import Way
from forefed.federation.star import RunState
from forefed.guard import HeldOut, guard_of, vouched
from forefed.models.words import WORDS
from forefed.run.begun import Begun, with_start
from forefed.run.build import Federation, start_at
from forefed.run.callback import Told
from forefed.run.checkpoint import save_checkpoint
from forefed.run.head_start import finish
from forefed.run.tested import evaluate, tests_of
from forefed.start.answer import about as about_task

ERRORS = 1.0
"""Standard errors by which steps have to have more held-out rows right than the head alone."""


def jury_of(federation: Federation) -> Jury:
    """Whom a run's guard asks, and how."""
    config, objective = federation.config, federation.task.objective
    return Jury(
        federation.transport,
        about_task(federation.task),
        config.deadline_s,
        config.data.task.kind == "classification",
        objective.answered,
        Way.of(federation.star),
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
    """The end of a run: whether its steps stay, and, where none has or does, the head once more,
    from all rows.

    May be done again after a kill: it stands in the record when its evaluation does.
    """
    config, task = federation.config, federation.task
    start, guard = start_at(config, task), guard_of(config)
    if begun is None or start is None or not begun.line["held_out"]:
        return state, begun
    if config.codec.sends_slopes or config.download.by_records:
        return state, begun  # others hold the parameters by their log
    first = with_start(federation.start(), begun)
    moved = not begun.finished and _differ(state, first)
    if moved and guard is not None:
        begun = _weighed(guard, federation, folder, first, state, begun, told)
    steps = begun.line.get("steps")
    if moved and (steps is None or steps["kept"]):
        return state, begun
    if start.again and not begun.finished:
        told("loading", "solving the head from all rows")
        say, way = partial(told, "starting"), Way.of(federation.star)
        transport = federation.transport
        begun = finish(begun, start, task, transport, config.deadline_s, say, way)
        if begun.finished:
            begun.save(folder)
    if not begun.finished and steps is None:
        return state, begun
    state = with_start(replace(state, params=first.params), begun)
    save_checkpoint(folder, config, state, federation.transport.store)
    mark = "all_rows" if begun.finished else "head_alone"
    if not tests_of(folder)[-1].get(mark):
        evaluate(federation, folder, state, told, begun.words, mark)
    return state, begun


def _weighed(
    guard: HeldOut,
    federation: Federation,
    folder: Path,
    first: RunState,
    state: RunState,
    begun: Begun,
    told: Told,
) -> Begun:
    """The start's record with what all held-out rows say of the steps; asked once in a run."""
    if "steps" not in begun.line:
        jury = jury_of(federation)
        jury = replace(jury, way=jury.way.anew("end"))
        differ = {n: x for n, x in state.params.items() if not torch.equal(x, first.params[n])}
        told("loading", "weighing the steps against the head alone")
        sets = [first.params, differ]
        members = list(federation.transport.members())
        heard, held = jury.ask(sets, state.of(WORDS), state.round, members)
        steps: Json = {"kept": worth_it(guard, jury, held), "lost": heard.lost}
        steps |= held.to_json(1) if held.n else {"rows": 0}
        line = {**begun.line, "steps": steps}
        line["bytes_up"] += heard.bytes_up
        line["bytes_down"] += heard.bytes_down
        begun = replace(begun, line=line)
        begun.save(folder)
    if not begun.line["steps"]["kept"]:
        told("note", left_out(begun.line["steps"]))
    return begun


def left_out(steps: Json) -> str:
    """Why the steps of a run do not stay, in words."""
    losses = "held-out loss {:.3f} with the adapters' steps, {:.3f} without".format(
        *reversed(steps["loss"])
    )
    if "right" in steps:
        one, other = steps["right"]
        losses = (
            f"of {steps['rows']} held-out rows {other:.10g} are right with the adapters' steps and "
            f"{one:.10g} without (standard error of the difference {steps['apart'] ** 0.5:.1f}); "
            f"{losses}"
        )
    return f"the run ends with the head alone: {losses}"


def _differ(state: RunState, first: RunState) -> bool:
    return any(not torch.equal(x, first.params[n]) for n, x in state.params.items())
