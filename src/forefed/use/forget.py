"""``forefed forget``: a run's solved head without a client's rows, exactly.

The sums of all clients are whole numbers, so taking a client's away leaves what a run without it
would have had, bit for bit; what words say is solved anew from the others. The head solved from
them (with the run's own regularisation and scale) is the one that it would have begun with under
these settings; of a run that ended with a head for the features of its trained model, the one for
these. What adapters and a trained head have learned in later rounds from that client
cannot be taken out: train anew without it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from forefed.config.config import Config
from forefed.core.errors import UserError
from forefed.core.settings import parse
from forefed.core.types import Params
from forefed.run import record
from forefed.run.build import answers, build, words_at
from forefed.run.head_start import head_of, params_of, words_again
from forefed.run.start_result import Begun, load_begun
from forefed.start.answer import HELD_OUT, TRAINING, targets_of_task
from forefed.start.solver import Solver
from forefed.use.predict import trained


def forget(run: Path, client: int) -> Begun:
    """What the run begins with once this client is forgotten; saved over what it had.

    Raises:
        UserError: no such client, or a run without sums; a run between machines, whose rows are
            not here.
    """
    config = parse(Config, record.read_config(run))
    config = config.model_copy(update={"out": run.parent, "name": run.name})
    begun = load_begun(run)
    if begun is None:
        raise UserError(f"{run}: its head was not solved from sums (start); none can be taken away")
    if begun.line.get("private"):
        raise UserError(
            f"{run}: its sums have noise, which nothing can be subtracted from; start a run "
            "without that client"
        )
    if not begun.among([client]):
        raise UserError(f"{run}: the sums of client {client} were left out, so none is in the head")
    gone = list(begun.line.get("forgotten", []))
    if client in gone:
        raise UserError(f"{run}: client {client} is forgotten already")
    if config.partition.kind == "sites":
        raise UserError(
            f"{run}: its rows are at the sites; start a run without that site (partition.names)"
        )
    federation = build(config)
    population = federation.data.population
    if not 0 <= client < population.size:
        raise UserError(f"forget: the run has clients 0 to {population.size - 1}, not {client}")
    task = federation.task
    which: Params = {}
    if begun.line.get("adapted"):
        params = trained(run, config)[1].params
        which |= {n: x for n, x in params.items() if n not in task.head}
    total, answering = begun.total, answers(config, task, None)
    for rows in (TRAINING, HELD_OUT) if begun.finished else (TRAINING,):  # as they were asked for
        asked = {**which, "rows": torch.tensor(rows)}
        total = total.plus(answering.sums_of(asked, population.client(client)), -1)
    targets, line = targets_of_task(task), begun.line
    notes, solver = targets.usable(total), Solver.of(total, targets.unit)
    head = head_of(targets, solver, line, getattr(config.start, "prior", "counts"))
    others = [c for c in begun.among(range(population.size)) if c not in (*gone, client)]
    most = words_at(config, federation.data.provenance["columns"])
    words = words_again(begun, task, federation.transport, others, total, most)
    notes = [*notes, *solver.notes]
    line = {**line, "examples": total.rows, "notes": notes, "forgotten": [*gone, client]}
    left = replace(begun, head=params_of(task, head), total=total, line=line, words=words)
    left.save(run)
    return left
