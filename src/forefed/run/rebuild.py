"""From the first values and the scalar log to the parameters, bit for bit, with their digests.

Two callers: a server that goes on from its checkpoint and what the log has beyond it, and
``forefed replay``, which begins at the first values and believes nothing but the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from forefed.config.config import Config
from forefed.core import trees
from forefed.core.errors import ProtocolError, UserError
from forefed.core.settings import parse
from forefed.federation.server import Server
from forefed.federation.star import Star
from forefed.federation.state import RunState
from forefed.models.export import save_adapter
from forefed.models.load import load_tokenizer
from forefed.models.task import Task
from forefed.run import record
from forefed.run.assemble import make_server, make_trainer, trainers
from forefed.run.build import load_model, task_view
from forefed.run.checkpoint import config_digest, load_checkpoint
from forefed.run.client_engines import kept_engines
from forefed.run.log import LOG, LoggedRound, ScalarLog, open_log
from forefed.run.start_result import load_begun
from forefed.wire.records import decode_record


@dataclass(frozen=True)
class Rebuilt:
    """What ``replay_log`` found. ``digests``: rounds whose digest was compared and equal."""

    state: RunState
    digest: str
    digests: tuple[int, ...]
    torn: int
    """Bytes of a torn last message that were left out."""
    task: Task
    config: Config


def go_on(log: ScalarLog, state: RunState, star: Star) -> RunState:
    """The state after the log's last round, from a checkpoint's; a torn last message is cut off.

    Raises:
        UserError: a log that is damaged, ends before the checkpoint, or gives other parameters.
    """
    place, last = log.start, 0
    for logged, after in replayed(log, state, star.server):
        place, last = logged.stop, logged.round
        if logged.round > state.round:
            state = star.remember(state, after, logged.record, logged.heard, logged.failed)
    _reaches(log, last, state.round, "checkpoint")
    log.cut(place)
    return state


def replayed(
    log: ScalarLog, state: RunState, server: Server
) -> Iterator[tuple[LoggedRound, RunState]]:
    """Every round of the log, and the state after it; rounds that ``state`` has already done are
    passed over.

    Raises:
        UserError: a damaged log, or rounds that give other parameters than they gave to the server.
    """
    checked = state.round
    for logged in log.rounds():
        if logged.round > state.round:
            try:
                state = server.replay(state, decode_record(logged.record, state.params))
            except ProtocolError as error:
                raise UserError(
                    f"{log.path}: round {logged.round} does not follow from what stands before it "
                    f"({error}); the log is of another run, or rounds are missing"
                ) from None
            if logged.digest and trees.digest(state.params) != logged.digest:
                raise UserError(
                    f"{log.path}: other parameters than the server's after round {logged.round}; "
                    f"they were equal after round {checked}, so a mismatch begins in rounds "
                    f"{checked + 1} to {logged.round}. Another version of torch, another processor "
                    "or an edited log can be the reason"
                )
            checked = logged.round if logged.digest else checked
        yield logged, state


def replay_log(place: Path) -> Rebuilt:
    """Rebuild a run's parameters from its first values and its log, and compare all digests.

    Args:
        place: the run's folder, or the log in it.

    Raises:
        UserError: no run, no log, a log that is damaged, foreign or cut short, or a mismatch (with
            the rounds in which it begins).
    """
    folder = place if place.is_dir() else place.parent
    config = parse(Config, record.read_config(folder))
    config = config.model_copy(
        update={"out": folder.parent, "name": folder.name}
    )  # it may be moved
    if not config.codec.sends_slopes:
        raise UserError(
            f"{folder}: clients of this run sent tensors (codec.kind = '{config.codec.kind}'), so "
            "there is no scalar log; runs with codec.kind = 'scalars' have one"
        )
    log = open_log(folder / LOG if place.is_dir() else place, config_digest(config))
    task = load_model(config, record.label_names(folder))
    begun = load_begun(folder)
    if begun is not None:
        task = replace(task, params={**task.params, **begun.head})
    if trees.digest(task.params) != log.base:
        raise UserError(
            f"{log.path}: the run began from other first values than {config.model.name} has here; "
            "the model's files or the versions of the libraries are others"
        )
    engines = kept_engines(config)
    trainer = make_trainer(config, task_view(config, task, engines.spare), engines.of(0))
    server = make_server(config, task, trainers(trainer, engines))
    state, stop, digests = RunState(0, task.params), log.start, []
    for logged, after in replayed(log, state, server):
        state, stop = after, logged.stop
        digests += [logged.round] if logged.digest else []
    digest = trees.digest(state.params)
    _compare(log, folder, config, state, digest)
    return Rebuilt(state, digest, tuple(digests), log.path.stat().st_size - stop, task, config)


def export_rebuilt(found: Rebuilt, folder: Path) -> None:
    """The rebuilt parameters as a PEFT adapter.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists; choose a new folder")
    card = (
        f"Adapter of {found.task.base_name}, rebuilt from a scalar log.\n\n"
        f"Rounds: {found.state.round}. Digest of the parameters: {found.digest}\n"
    )
    words = load_tokenizer(found.config.model)
    save_adapter(found.task, found.state.params, folder, card, words)


def _compare(log: ScalarLog, folder: Path, config: Config, state: RunState, digest: str) -> None:
    """With what else the run has left: its summary, or else its checkpoint."""
    summary = record.summary(folder)
    if summary is not None:
        _reaches(log, state.round, summary["rounds"], "summary")
        known = str(summary["digest"])
    else:
        saved = load_checkpoint(folder, config, torch.device("cpu"))
        if saved is not None:
            _reaches(log, state.round, saved.state.round, "checkpoint")
        if saved is None or saved.state.round != state.round:
            return
        known = trees.digest(saved.state.params)
    if known != digest:
        raise UserError(
            f"{log.path}: after round {state.round} the log gives other parameters than the run's "
            "own; one of the two was changed"
        )


def _reaches(log: ScalarLog, last: int, wanted: int, what: str) -> None:
    if last < wanted:
        raise UserError(
            f"{log.path}: ends after round {last}, and the run's {what} is of round {wanted}; the "
            "log was cut short or is damaged there. Restore it from a copy"
        )
