"""One run from start to finish, with records, checkpoints and resumption."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from forefed.attacks import Hostile
from forefed.config.advice import taken
from forefed.config.compat import check
from forefed.config.config import Config, configure
from forefed.config.privacy import delta_of, statements
from forefed.config.privacy import notes as privacy_notes
from forefed.core import trees
from forefed.core.boundary import UNTRAINED
from forefed.core.errors import UserError, of_system
from forefed.core.files import write_json
from forefed.core.keys import Key
from forefed.core.metrics import Metric
from forefed.core.states import keep
from forefed.core.types import Json
from forefed.federation.adversary import Adversary
from forefed.federation.guarding import LEFT_OUT, guarded, resting, steps_kept
from forefed.federation.questions import Way
from forefed.federation.star import RunState
from forefed.guard import HeldOut, guard_of
from forefed.models.export import CONFIG, save_adapter
from forefed.models.load import load_tokenizer
from forefed.models.outside import head_text
from forefed.models.quantised import parameter_count, weights_bytes
from forefed.models.task import Task
from forefed.models.words import WORDS, Words
from forefed.privacy import Ledger
from forefed.run import record
from forefed.run.begun import Begun, load_begun
from forefed.run.build import Connect, Federation, build, start_at, whole_length, words_at
from forefed.run.callback import Callback, Told
from forefed.run.card import Trained, model_card
from forefed.run.checkpoint import (
    BEST,
    check_fits,
    config_digest,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from forefed.run.evaluate import beside, evaluate_clients, evaluate_global, evaluate_nodes
from forefed.run.head_start import begin, finish
from forefed.run.health import Ending, Health, norm_of
from forefed.run.lines import choices, memory_groups, notices, protects, round_line
from forefed.run.log import LOG, ScalarLog, create_log, open_log
from forefed.run.origin import changes, check_accepting, check_unchanged, origin_of
from forefed.run.rebuild import go_on
from forefed.start.answer import about as about_task

FINISHED, ADAPTER = "finished", "adapter"


Watcher = Callback
"""The former name."""


@dataclass(frozen=True)
class Result:
    """What ``run`` returns: the folder of the record, and the summary written there."""

    folder: Path
    summary: Json

    @property
    def status(self) -> int:
        """The exit status of a command that ran it."""
        return 0 if self.summary.get("status") == FINISHED else UNTRAINED


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
    _check_adapter_place(folder)
    federation = build(config, partial(told, "loading"), connect=connect)
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
    first = _begun_with(federation, begun)
    transport, attack = federation.transport, config.attack
    if isinstance(transport, Adversary):
        transport.first = first.params
    if isinstance(attack, Hostile):
        told("note", attack.told())
    words = None if begun is None else begun.words
    if state.round == 0 and not (begun is not None and begun.finished):
        _evaluate(federation, folder, state, told, words)
        if config.rounds == 0:
            save_checkpoint(folder, config, state, federation.transport.store)
    decides = federation.task.objective.measures.decides
    health = Health(norm_of(first.params), decides)
    tests = _tests(folder)
    for line in sorted([*record.read_lines(folder, record.ROUNDS), *tests], key=_in_time):
        health = health.tested(line) if "split" in line else health.after(line)
    best = _best(tests, decides)
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
            state, judged = _guarded(guard, federation, before, state)
            rests = rests + 1 if judged["step"] == 0 else 0
            seconds["guard"] = time.perf_counter() - clock
        last = _over(config, state, rests)
        if state.round % config.evaluate.every == 0 or last:
            clock = time.perf_counter()
            test = _evaluate(federation, folder, state, told, words)
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
            line["privacy"] = _spent(federation, ledger, state.round)
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
    if ending is not None and _tests(folder)[-1]["round"] != state.round:
        _evaluate(federation, folder, state, told, words)
    if ending is None:
        state, begun = _finished(federation, folder, state, begun, told)
    if ending is None and state.round < config.rounds:
        told(
            "note",
            f"ended after round {state.round}: no step of the last {rests} rounds lowered the "
            "clients' held-out loss (guard.patience)",
        )
    kept = steps_kept(record.read_lines(folder, record.ROUNDS))
    if ending is None and kept == 0:
        told("note", LEFT_OUT.format(rounds=state.round))
    if ending is None and (begun is None or state.round):
        moved = trees.digest(state.params) != trees.digest(federation.task.params)
        store = federation.transport.store
        moved |= any(store.private(c) for c in store.states)
        ending = health.at_the_end(moved)
    result = _finish(federation, folder, state, ending, begun, ledger)
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
        state = _begun_with(federation, begun)
        return state, _write_head(federation, folder, now, state), begun
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
    )
    if begun.words is not None and not way.channel.sums and start.words == "auto":
        text = (
            "words count beside the features here; between machines they do under channel.kind = "
            "'secure_sum' only, or where start.words is a number, as they tell what a site's "
            "texts have"
        )
        begun = replace(begun, line={**begun.line, "notes": [*begun.line["notes"], text]})
    begun.save(folder)
    return begun


def _spent(federation: Federation, ledger: Ledger, round: int | None) -> list[Json]:
    """What the run has let out up to a round, or in all (None), as statements."""
    made = [r for r in ledger.made if round is None or r.round <= round]
    return statements(made, delta_of(federation.config), federation.in_rehearsal)


def _finished(
    federation: Federation, folder: Path, state: RunState, begun: Begun | None, told: Told
) -> tuple[RunState, Begun | None]:
    """The end of a run in which no adapter has moved: the head is solved once more, from all rows.

    May be done again after a kill: it stands in the record when its evaluation does.
    """
    config, task = federation.config, federation.task
    start = start_at(config, task)
    if begun is None or start is None or not start.again or not begun.line["held_out"]:
        return state, begun
    if config.codec.sends_slopes or config.download.by_records:
        return state, begun  # others hold the parameters by their log
    if not begun.finished:
        first = _begun_with(federation, begun).params
        if any(not torch.equal(x, first[n]) for n, x in state.params.items()):
            return state, begun
        told("loading", "solving the head from all rows")
        say, way = partial(told, "starting"), Way.of(federation.star)
        transport = federation.transport
        begun = finish(begun, start, task, transport, config.deadline_s, say, way)
        if not begun.finished:
            return state, begun
        begun.save(folder)
    state = _with(state, begun)
    save_checkpoint(folder, config, state, federation.transport.store)
    if not _tests(folder)[-1].get("all_rows"):
        _evaluate(federation, folder, state, told, begun.words, all_rows=True)
    return state, begun


def _begun_with(federation: Federation, begun: Begun | None) -> RunState:
    """The state before round 1."""
    return _with(federation.start(), begun)


def _with(state: RunState, begun: Begun | None) -> RunState:
    """The state with the start's head, and with the words that count beside the features."""
    if begun is None:
        return state
    said = {} if begun.words is None else begun.words.packed()
    params = {**state.params, **begun.head}
    return replace(state, params=params, states=keep(state.states, WORDS, said))


def _guarded(
    guard: HeldOut, federation: Federation, before: RunState, after: RunState
) -> tuple[RunState, Json]:
    config = federation.config
    about, key = about_task(federation.task), Key(config.seed)
    classes, deadline_s = config.data.task.kind == "classification", config.deadline_s
    way = Way.of(federation.star)
    return guarded(guard, federation.transport, about, key, before, after, deadline_s, classes, way)


def _over(config: Config, state: RunState, rests: int) -> bool:
    guard = guard_of(config)
    patience = None if guard is None else guard.patience
    return state.round >= config.rounds or (patience is not None and rests >= patience)


def _check_adapter_place(folder: Path) -> None:
    """Where the adapter will stand there is one, or nothing.

    Raises:
        UserError: something else is there; said before any work, as it is written last.
    """
    place = folder / ADAPTER
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()
    if place.exists() and not (place / CONFIG).is_file():
        raise UserError(f"{place}: is no adapter, and one is to be written there; move it away")


def _in_time(line: Json) -> tuple[int, bool]:
    return line["round"], "split" not in line


def _tests(folder: Path) -> list[Json]:
    """The evaluations on the test rows, in order."""
    return [e for e in record.read_lines(folder, record.EVALUATIONS) if e["split"] == "test"]


def _best(tests: Sequence[Json], decides: Metric) -> Json:
    """The best evaluation, the earliest of equals."""
    best = tests[0]
    for line in tests:
        best = line if decides.better(line, best) else best
    return best


def about_model(task: Task) -> Json:
    """What a record says of the model."""
    dtype = next(task.model.parameters()).dtype
    return {
        "name": task.base_name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(task.device),
        "parameters": parameter_count(task.model),
        "weights_bytes": weights_bytes(task.model),
        "trainable": sum(u.size for u in task.units),
        "units": [[u.name, u.depth, u.size] for u in task.units],
        "notes": list(task.notes),
    }


def _write_head(
    federation: Federation, folder: Path, origin: Json, first: RunState
) -> ScalarLog | None:
    """What a record says before its first round; the configuration, last, makes it a run. Returns
    the log, where slopes travel."""
    task = federation.task
    majority = federation.majority()
    data: Json = {**federation.data.provenance, "counts": federation.data.counts}
    measures = task.objective.measures.to_json()
    about: Json = {
        "measures": measures,
        "majority": majority,
        "data": data,
        "model": about_model(task),
        "origin": origin,
    }
    attack, transport = federation.config.attack, federation.transport
    if isinstance(attack, Hostile) and isinstance(transport, Adversary):
        about["attack"] = {
            "kind": attack.kind,
            "clients": sorted(transport.who),
            "told": attack.told(),
        }
    write_json(
        folder / "environment.json",
        {
            **record.environment(),
            **about,
            "choices": choices(federation.config),
            "protects": protects(federation.config),
            "rehearsed": federation.rehearsed,
            "secret": federation.secrecy,
        },
    )
    write_json(folder / "partition.json", federation.data.population.summary())
    config, log = federation.config, None
    if config.codec.sends_slopes:
        log = create_log(folder / LOG, config_digest(config), trees.digest(first.params))
    record.write_config(folder, config)
    return log


def _evaluate(
    federation: Federation,
    folder: Path,
    state: RunState,
    told: Told,
    words: Words | None,
    all_rows: bool = False,
) -> Json:
    """Test, and record it; returns the line of the global test.

    Args:
        words: what texts' words add to the logits.
        all_rows: the clients' held-out rows are learned, so none is tested on.
    """
    settings = federation.config.evaluate
    task, test, prefix = federation.task, federation.data.test, federation.prefix
    size = settings.batch_size
    line, details = evaluate_global(task, state.params, test, size, prefix, words)
    lines = [{**line, **({"all_rows": True} if all_rows else {})}]
    if details:
        write_json(folder / record.DETAILS, {"round": state.round, **details})
    personal = federation.config.sharing.personal and federation.secrecy != "system"
    count = settings.clients or (federation.config.cohort if personal else 0)
    if count and not all_rows:
        population = federation.data.population
        key = Key(federation.config.seed).fold("evaluate", state.round)
        chosen = key.choice(population.size, min(count, population.size))
        clients = [population.client(c) for c in chosen]
        store, sharing = federation.transport.store, federation.config.sharing
        own = [sharing.own(state.params, store.private(c), task.head) for c in chosen]
        own = own if personal else []
        each: list[Json] = [
            {"client": int(i), "n": len(c.test)} for i, c in zip(chosen, clients, strict=True)
        ]
        common: list[float | None] = []
        for private in [(), *([own] if personal else [])]:
            line, found = evaluate_clients(task, state.params, clients, size, private, words)
            sign = task.objective.measures.decides.sign
            lines.append({**line, **(beside(found, common, sign) if private else {})})
            common = found
            for one, value in zip(each, found, strict=True):
                one[line["split"]] = value
        write_json(folder / record.CLIENTS, {"round": state.round, "clients": each})
    nodes = federation.config.topology.models(state)
    if nodes:
        lines.append(evaluate_nodes(task, nodes, test, size, prefix))
    for line in lines:
        record.append(folder, record.EVALUATIONS, {"round": state.round, **line})
        told("evaluated", {"round": state.round, **line})
    return {"round": state.round, **lines[0]}


def _finish(
    federation: Federation,
    folder: Path,
    state: RunState,
    ending: Ending | None,
    begun: Begun | None,
    ledger: Ledger,
) -> Result:
    """Adapter, model card and summary; the summary comes last and marks the run as ended.

    A run that trained nothing worth using (``ending``) gets no adapter: the parameters of its last
    good round stay in its checkpoint.
    """
    rounds, tests = record.read_lines(folder, record.ROUNDS), _tests(folder)
    none: Json = {"bytes_up": 0, "bytes_down": 0, "seconds": 0.0, "forwards": 0.0}
    extra: Json = none if begun is None else {**none, **begun.line}
    spent = [*rounds, extra]
    decides = federation.task.objective.measures.decides
    about: Json = {} if ending is None else {"reason": ending.reason}
    attack = federation.config.attack
    if isinstance(attack, Hostile):
        about["attack"] = attack.told()
    errors = [e for r in rounds if (e := r["metrics"].get("lora_error")) is not None]
    if errors:
        about["lora_error"] = {"mean": sum(errors) / len(errors), "last": errors[-1]}
    changed = record.read_json(folder / "environment.json").get("changes")
    summary: Json = {
        "status": FINISHED if ending is None else ending.status,
        **about,
        "rounds": state.round,
        "digest": trees.digest(state.params),
        "baseline": {
            "majority": federation.majority(),
            ("untrained" if begun is None else "head alone"): decides.of(tests[0]),
        },
        "final": tests[-1],
        "best": _best(tests, decides),
        "totals": {
            "bytes_up": sum(r["bytes_up"] for r in spent),
            "bytes_down": sum(r["bytes_down"] for r in spent),
            "seconds": sum(r["seconds"]["total"] for r in rounds) + extra["seconds"],
            "forwards": sum(r["forwards"] for r in spent),
        },
        **({"privacy": _spent(federation, ledger, None)} if ledger.made else {}),
        **({"changes": changed} if changed else {}),
    }
    if ending is None:
        own_head = head_text(federation.task) is not None
        words = load_tokenizer(federation.config.model)
        trained = Trained.of(folder, state.round, summary, own_head)
        card = model_card(federation.config, trained, words)
        said, config = None if begun is None else begun.words, federation.config
        columns = federation.data.provenance["columns"]
        reads = config.data.max_length if whole_length(config, words, columns) else None
        save_adapter(
            federation.task, state.params, folder / ADAPTER, card, words, words=said, reads=reads
        )
    write_json(folder / record.SUMMARY, summary)
    return Result(folder, summary)


def _same_run(folder: Path, config: Config) -> bool:
    """Does the folder hold a run of these settings, wherever it was made and moved to?"""
    stored = configure(base=record.read_config(folder))
    return config_digest(stored) == config_digest(config)
