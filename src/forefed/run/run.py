"""One run from start to finish, with records, checkpoints and resumption."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from forefed.attacks import Hostile
from forefed.config.advice import taken
from forefed.config.compat import check
from forefed.config.config import Config, configure
from forefed.config.privacy import notes as privacy_notes
from forefed.core import trees
from forefed.core.errors import UserError, of_system
from forefed.core.types import Json
from forefed.federation.adversary import Adversary
from forefed.federation.guarding import LEFT_OUT, resting, steps_kept
from forefed.federation.questions import Way
from forefed.federation.star import RunState
from forefed.guard import guard_of
from forefed.privacy import Ledger
from forefed.run import record
from forefed.run.best import best_of, evaluate, tests_of
from forefed.run.build import Connect, Federation, build, groups_at, start_at, words_at
from forefed.run.callback import Callback, Told
from forefed.run.checkpoint import (
    BEST,
    check_fits,
    config_digest,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from forefed.run.guard_decisions import ended, guarded_by
from forefed.run.head_start import begin
from forefed.run.health import Health, norm_of
from forefed.run.lines import memory_groups, notices, round_line
from forefed.run.log import LOG, ScalarLog, open_log
from forefed.run.provenance import changes, check_accepting, check_unchanged, origin_of
from forefed.run.rebuild import go_on
from forefed.run.slim import clients_elsewhere
from forefed.run.start_result import Begun, load_begun, with_start
from forefed.run.summary import Result, check_adapter_place, spent, write_end, write_head

Watcher = Callback
"""The former name."""


def run(
    config: Config,
    resume: bool = False,
    watcher: Callback | None = None,
    connect: Connect | None = None,
    callbacks: Sequence[Callback] = (),
    accept_changes: bool = False,
) -> Result:
    """Run a federation, or go on with one.

    Args:
        config: what to run (``forefed.configure`` makes one from a file and settings).
        resume: go on from the checkpoint in the run's folder, bit for bit as if never stopped.
        watcher: one more callback.
        connect: what leads to the clients of a deployment; None: all clients are in this process.
        callbacks: told of progress.
        accept_changes: go on although rows, weights or versions have changed since the run began,
            and write that into the record.

    Returns:
        The folder, and the summary. Its "status" says whether the run trained something:
        "finished", or "diverged", "unheard", "not trained" with a "reason" (``run/health.py``).

    Raises:
        UserError: a configuration that cannot work, a folder that holds another run, a damaged
            checkpoint. Nothing that exists is overwritten.
    """
    told = Told([*([watcher] if watcher else []), *callbacks])
    folder = config.folder
    check_accepting(resume, accept_changes)
    check(config, deployed=connect is not None)
    if (folder / "config.json").exists():
        finished = record.summary(folder)
        if finished is not None and _same_run(folder, config):
            told("already_finished", finished)
            return Result(folder, finished)
        if not resume:
            raise UserError(
                f"{folder}: a run of this name exists already; go on with it by --resume, or "
                "choose another name (--set name=...)"
            )
    elif resume:
        raise UserError(f"{folder}: there is no run to resume here")
    try:
        with record.locked(folder):
            return _run(config, folder, told, connect, resume, accept_changes)
    except OSError as error:
        known = of_system(error, folder)
        if known is None:
            raise
        kept = (folder / "config.json").exists()
        more = " (nothing that was saved is lost: it goes on with --resume)" if kept else ""
        place = "" if str(known).startswith(str(folder)) else f"{folder}: "
        raise UserError(f"{place}{known}{more}") from error


def _run(
    config: Config,
    folder: Path,
    told: Told,
    connect: Connect | None,
    resume: bool,
    accept_changes: bool,
) -> Result:
    check_adapter_place(folder)
    federation = build(config, partial(told, "loading"), connect=connect)
    with clients_elsewhere(federation, partial(told, "loading")) as federation:
        return _rounds(federation, folder, told, resume, accept_changes)


def _rounds(
    federation: Federation, folder: Path, told: Told, resume: bool, accept_changes: bool
) -> Result:
    config = federation.config
    state, log, begun = _begin(federation, folder, told, resume, accept_changes)
    told("built", federation, state.round)
    solved = () if begun is None else begun.notes
    promised = privacy_notes(config, federation.data.population.size, federation.in_rehearsal)
    for text in (
        *taken(config),
        *federation.data.notes,
        *federation.task.notes,
        *solved,
        *promised,
    ):
        told("note", text)
    first = _state_before_round_1(federation, begun)
    transport, attack = federation.transport, config.attack
    if isinstance(transport, Adversary):
        transport.first = first.params
    if isinstance(attack, Hostile):
        told("note", attack.told())
    words = None if begun is None else begun.words
    if state.round == 0 and not (begun is not None and begun.finished):
        evaluate(federation, folder, state, told, words)
        if config.rounds == 0:
            save_checkpoint(folder, config, state, federation.transport.store)
    decides = federation.task.objective.measures.decides
    health = Health(norm_of(first.params), decides)
    tests = tests_of(folder)
    for line in sorted([*record.read_lines(folder, record.ROUNDS), *tests], key=_in_time):
        health = health.tested(line) if "split" in line else health.after(line)
    best = best_of(tests, decides)
    ledger = Ledger.of(folder)
    checkpoint_s, said = 0.0, set[str]()
    ending = health.diverged() if state.round else None
    rests = resting(record.read_lines(folder, record.ROUNDS))
    guard = guard_of(config)
    last = _over(config, state, rests)
    if ending is None and last and state.round:
        # killed between the log's last round and its checkpoint, from which others read
        save_checkpoint(folder, config, state, federation.transport.store)
    while ending is None and not last:
        started = time.perf_counter()
        before = state
        state, report = federation.star.round(state, partial(told, "outcome"))
        ledger.enter(report.releases)  # before anybody sees what they let out
        seconds = dict(report.seconds)
        judged: Json = {}
        if guard is not None:
            clock = time.perf_counter()
            state, judged = guarded_by(guard, federation, before, state)
            rests = rests + 1 if judged["step"] == 0 else 0
            seconds["guard"] = time.perf_counter() - clock
        last = _over(config, state, rests)
        if state.round % config.evaluate.every == 0 or last:
            clock = time.perf_counter()
            test = evaluate(federation, folder, state, told, words)
            health = health.tested(test)
            if decides.better(test, best):
                best = test
                save_best(folder, config, state)
            seconds["evaluate"] = time.perf_counter() - clock
        seconds["checkpoint"] = checkpoint_s
        seconds["total"] = time.perf_counter() - started + checkpoint_s
        line = round_line(report, seconds)
        line["norm"] = norm_of(state.params)
        if isinstance(transport, Adversary):
            line["hostile"] = sorted(transport.who & {*report.cohort})
            line["likeness"] = transport.likeness
        if ledger.made:
            line["privacy"] = spent(federation, ledger, state.round)
        if judged:
            line["guard"] = judged
            line["bytes_up"] += judged["bytes_up"]
            line["bytes_down"] += judged["bytes_down"]
        if len(federation.engines.groups) > 1:
            line["groups"] = memory_groups(report, federation.engines)
        prefix = federation.trainer.task.prefix
        if prefix is not None:
            line["memory"]["prefix_cache"] = prefix.cache.stored_bytes
        for text in notices(line, federation.config, prefix.cache.stopped if prefix else ""):
            if text not in said:
                said.add(text)
                told("note", text)
        record.append(folder, record.ROUNDS, line)
        health = health.after(line)
        ending = health.diverged()
        clock = time.perf_counter()
        if log is not None:
            # after the round's other lines, as a round that the log has is not done again
            log.append(state, report, last=last or ending is not None)
        # What may have diverged does not replace what has not.
        due = state.round % config.checkpoint_every == 0 and not health.worrying
        if ending is None and (due or last):
            save_checkpoint(folder, config, state, federation.transport.store)
        checkpoint_s = time.perf_counter() - clock  # stands in the next round's line
        told("round", line)
    if ending is not None and tests_of(folder)[-1]["round"] != state.round:
        evaluate(federation, folder, state, told, words)
    if ending is None:
        state, begun = ended(federation, folder, state, begun, told)
    if ending is None and state.round < config.rounds:
        told(
            "note",
            f"ended after round {state.round}: no step of the last {rests} rounds lowered the "
            "clients' held-out loss (guard.patience)",
        )
    kept = steps_kept(record.read_lines(folder, record.ROUNDS))
    if ending is None and kept == 0 and begun is not None:
        told("note", LEFT_OUT.format(rounds=state.round))
    if ending is None and (begun is None or state.round):
        moved = trees.digest(state.params) != trees.digest(federation.task.params)
        store = federation.transport.store
        moved |= any(store.private(c) for c in store.states)
        ending = health.at_the_end(moved, kept)
    result = write_end(federation, folder, state, ending, begun, ledger)
    told("ended", result.summary)
    return result


def _begin(
    federation: Federation, folder: Path, told: Told, resume: bool, accept_changes: bool
) -> tuple[RunState, ScalarLog | None, Begun | None]:
    """The state from which the run goes on, its log where slopes travel, and its start.

    Raises:
        UserError: rows, weights or versions have changed; a record that is damaged.
    """
    config, task = federation.config, federation.task
    saved = load_checkpoint(folder, config, task.device)
    state = federation.start()
    log: ScalarLog | None = None
    now, found = origin_of(federation), list[Json]()
    if saved is not None or (resume and config.codec.sends_slopes):
        before = record.read_json(folder / "environment.json").get("origin")
        if before is None:
            told("note", "this record is older and keeps no digests of its rows and weights")
        else:
            found = changes(before, now)
            check_unchanged(folder, found, accept_changes)
    if saved is not None:
        check_fits(folder, saved.state, state.params)
        state = saved.state
        federation.transport.store.states.update(saved.clients.states)
    if resume and config.codec.sends_slopes:
        log = open_log(folder / LOG, config_digest(config))
        state = go_on(log, state, federation.star)
    if state.round == 0:
        record.truncate(folder, -1)
        (folder / BEST).unlink(missing_ok=True)
        begun = _solved(federation, folder, told)
        state = _state_before_round_1(federation, begun)
        return state, write_head(federation, folder, now, state), begun
    if federation.transport.replica is not None:
        federation.transport.replica.state = state  # what the clients kept on their own disks
    record.check_whole(folder, state.round)
    begun = load_begun(folder)
    record.truncate(folder, state.round)
    if found:
        record.write_changes(folder, state.round, found, now)
    return state, log, begun


def _solved(federation: Federation, folder: Path, told: Told) -> Begun | None:
    """The start's head, from all clients' sums; None where the run has none."""
    config = federation.config
    start = start_at(config, federation.task)
    if start is None:
        return None
    told("loading", "solving the head from all clients' sums")
    words = words_at(config, federation.data.provenance["columns"])
    say, way = partial(told, "starting"), Way.of(federation.star)
    task, transport = federation.task, federation.transport
    secret, ledger = federation.star.server.secret, Ledger.of(folder)
    begun = begin(
        start,
        task,
        transport,
        config.deadline_s,
        words,
        say,
        way,
        secret,
        ledger.enter,
        partial(groups_at, config, start),
    )
    if begun.words is not None and not way.channel.hides and start.words == "auto":
        text = (
            "words count beside the features here; between machines they do under channel.kind = "
            "'secure_sum' only, or where start.words is a number, as they tell what a site's "
            "texts have"
        )
        begun = replace(begun, line={**begun.line, "notes": [*begun.line["notes"], text]})
    begun.save(folder)
    return begun


def _state_before_round_1(federation: Federation, begun: Begun | None) -> RunState:
    """The state before round 1."""
    return with_start(federation.start(), begun)


def _over(config: Config, state: RunState, rests: int) -> bool:
    guard = guard_of(config)
    patience = None if guard is None else guard.patience
    return state.round >= config.rounds or (patience is not None and rests >= patience)


def _in_time(line: Json) -> tuple[int, bool]:
    return line["round"], "split" not in line


def _same_run(folder: Path, config: Config) -> bool:
    """Does the folder hold a run of these settings, wherever it was made and moved to?"""
    stored = configure(base=record.read_config(folder))
    return config_digest(stored) == config_digest(config)
