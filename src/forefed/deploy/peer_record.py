"""What a peer leaves of a run without a server: a folder that ``forefed replay``, ``predict`` and
``export`` read."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from forefed.config.config import Config
from forefed.core import trees
from forefed.core.files import write_json
from forefed.core.types import Json
from forefed.deploy.site import Prepared
from forefed.federation.chains import SharedLog
from forefed.federation.inprocess import ClientStore
from forefed.federation.peer import Fold
from forefed.federation.star import RoundReport
from forefed.federation.state import RunState
from forefed.models.export import save_adapter
from forefed.models.load import load_tokenizer
from forefed.run import record
from forefed.run.checkpoint import config_digest, save_checkpoint
from forefed.run.evaluate import evaluate_clients
from forefed.run.log import LOG, create_log
from forefed.run.summary import about_model


def write_record(
    folder: Path,
    config: Config,
    prepared: Prepared,
    names: Sequence[str],
    me: int,
    fold: Fold,
    view: SharedLog,
    state: RunState,
) -> None:
    """The record of a run that is done, in the place of an earlier one.

    Args:
        names: of all peers; ``me`` is the number of the one that writes, on whose rows it tests.
        fold: the rounds, made of ``view``, the log of all; ``state`` is what they ended in.
    """
    task, digest = prepared.task, trees.digest(state.params)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    record.write_config(building, config)
    rows, measures = prepared.rows, task.objective.measures
    environment: Json = {
        **record.environment(),
        "measures": measures.to_json(),
        "data": rows.provenance,
        "model": about_model(task),
        "secret": "system",
    }
    write_json(building / "environment.json", environment)
    about: Json = {"labels": rows.label_names, "clients": len(names)}
    write_json(building / "partition.json", about)
    log = create_log(building / LOG, config_digest(config), trees.digest(task.params))
    for i, done in enumerate(fold.done, 1):
        report = RoundReport(i, (), (), (), 0, 0, {}, record=done.record, summed=done.heard)
        log.append(done.state or RunState(i, {}), report, last=i == config.rounds)
    save_checkpoint(building, config, state, ClientStore())
    card = f"Adapter of {task.base_name}, trained by {len(names)} peers without a server.\n"
    save_adapter(task, state.params, building / "adapter", card, load_tokenizer(config.model))
    client, size = prepared.data(me), config.evaluate.batch_size
    tested, _ = evaluate_clients(task, state.params, [client], size)
    first, _ = evaluate_clients(task, task.params, [client], size)
    for round, line in ((0, first), (config.rounds, tested)):
        record.append(building, record.EVALUATIONS, {"round": round, **line})
    refused = Counter(a for done in fold.done for a in done.refused)
    said = sum(len(x) for chain in view.chains.values() for x in chain.payloads)
    summary: Json = {
        "status": "finished",
        # of contributions, as everybody is given them once; frames and talks come on top
        "totals": {
            "bytes_up": said,
            "bytes_down": said * (len(names) - 1),
            "forwards": sum(done.forwards for done in fold.done),
        },
        "best": tested,
        "rounds": config.rounds,
        "digest": digest,
        "final": tested,
        "baseline": {"untrained": measures.decides.of(first)},
        "contributions": {names[a]: len(c) for a, c in view.chains.items()},
        "refused": {names[a]: n for a, n in sorted(refused.items())},
    }
    write_json(building / record.SUMMARY, summary)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
