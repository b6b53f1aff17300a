"""One run from start to finish, with records, checkpoints and resumption."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from pathlib import Path

from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.files import write_json
from forefed.core.keys import Key
from forefed.core.types import Json, Lost, Reply
from forefed.gradients.memory import resident_bytes
from forefed.models.export import save_adapter
from forefed.models.outside import head_text
from forefed.models.quantised import parameter_count, weights_bytes
from forefed.run import record
from forefed.run.budgets import Engines
from forefed.run.build import Connect, Federation, build
from forefed.run.card import model_card
from forefed.run.checkpoint import config_digest, load_checkpoint, save_checkpoint
from forefed.run.compat import check
from forefed.run.config import Config, configure
from forefed.run.evaluate import evaluate_clients, evaluate_global
from forefed.run.log import LOG, ScalarLog, create_log, open_log
from forefed.run.rebuild import go_on
from forefed.run.star import RoundReport, RunState, losses_by_reason

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Watcher:
    """Told what happens during a run; the default is silence. Override what you want to show."""

    def loading(self, what: str) -> None: ...

    def built(self, federation: Federation, start_round: int) -> None: ...

    def outcome(self, outcome: Reply | Lost) -> None: ...

    def round(self, line: Json) -> None: ...

    def evaluated(self, line: Json) -> None: ...

    def already_finished(self, summary: Json) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Result:
    """What ``run`` returns: the folder of the record, and the summary written there."""

    folder: Path
    summary: Json


def run(
    config: Config,
    resume: bool = False,
    watcher: Watcher | None = None,
    connect: Connect | None = None,
) -> Result:
    """Run a federation, or go on with one.

    Args:
        config: what to run (``forefed.configure`` makes one from a file and settings).
        resume: go on from the checkpoint in the run's folder, bit for bit as if never stopped.
        watcher: told of progress.
        connect: what leads to the clients of a deployment; None: all clients are in this process.

    Raises:
        UserError: a configuration that cannot work, a folder that holds another run, a damaged
            checkpoint. Nothing that exists is overwritten.
    """
    watcher = watcher or Watcher()
    folder = config.folder
    check(config, deployed=connect is not None)
    if (folder / "config.json").exists():
        finished = record.summary(folder)
        if finished is not None and _same_run(folder, config):
            watcher.already_finished(finished)
            return Result(folder, finished)
        if not resume:
            raise UserError(
                f"{folder}: a run of this name exists already; go on with it by --resume, or "
                "choose another name (--set name=...)"
            )
    elif resume:
        raise UserError(f"{folder}: there is no run to resume here")
    with record.locked(folder):
        try:
            return _run(config, folder, watcher, connect, resume)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise UserError(
                f"{folder}: no room to write the record ({error.strerror}); nothing that was saved "
                "is lost: make room, and go on with --resume"
            ) from error


def _run(
    config: Config, folder: Path, watcher: Watcher, connect: Connect | None, resume: bool
) -> Result:
    federation = build(config, watcher.loading, connect=connect)
    saved = load_checkpoint(folder, config, federation.task.device)
    state = federation.start()
    log: ScalarLog | None = None
    if saved is not None:
        state = saved.state
        federation.transport.store.states.update(saved.clients.states)
    if resume and config.codec.sends_slopes:
        log = open_log(folder / LOG, config_digest(config))
        state = go_on(log, state, federation.star)
    if state.round:
        if federation.transport.replica is not None:
            federation.transport.replica.state = state  # what the clients kept on their own disks
        record.truncate(folder, state.round)
    else:
        record.truncate(folder, -1)
        log = _write_head(federation, folder)
    watcher.built(federation, state.round)
    for text in federation.task.notes:
        watcher.note(text)
    if state.round == 0:
        _evaluate(federation, folder, state, watcher)
    checkpoint_s, said = 0.0, set[str]()
    while state.round < config.rounds:
        started = time.perf_counter()
        state, report = federation.star.round(state, watcher.outcome)
        seconds = dict(report.seconds)
        if state.round % config.evaluate.every == 0 or state.round == config.rounds:
            clock = time.perf_counter()
            _evaluate(federation, folder, state, watcher)
            seconds["evaluate"] = time.perf_counter() - clock
        seconds["checkpoint"] = checkpoint_s
        seconds["total"] = time.perf_counter() - started + checkpoint_s
        line = round_line(report, seconds)
        if len(federation.engines.groups) > 1:
            line["groups"] = memory_groups(report, federation.engines)
        prefix = federation.trainer.task.prefix
        if prefix is not None:
            line["memory"]["prefix_cache"] = prefix.cache.stored_bytes
        for text in notices(line, federation.config, prefix.cache.stopped if prefix else ""):
            if text not in said:
                said.add(text)
                watcher.note(text)
        record.append(folder, record.ROUNDS, line)
        clock = time.perf_counter()
        if log is not None:
            # after the round's other lines, as a round that the log has is not done again
            log.append(state, report, last=state.round == config.rounds)
        if state.round % config.checkpoint_every == 0 or state.round == config.rounds:
            save_checkpoint(folder, config, state, federation.transport.store)
        checkpoint_s = time.perf_counter() - clock  # stands in the next round's line
        watcher.round(line)
    return _finish(federation, folder, state)


def _write_head(federation: Federation, folder: Path) -> ScalarLog | None:
    """What a record says before its first round; the configuration, last, makes it a run. Returns
    the log, where slopes travel."""
    task = federation.task
    dtype = next(task.model.parameters()).dtype
    model: Json = {
        "name": task.base_name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(task.device),
        "parameters": parameter_count(task.model),
        "weights_bytes": weights_bytes(task.model),
        "trainable": trees.size(task.params),
        "units": [[u.name, u.depth, u.size] for u in task.units],
        "notes": list(task.notes),
    }
    majority = federation.majority()
    data: Json = {**federation.data.provenance, "counts": federation.data.counts}
    measures = federation.task.objective.measures.to_json()
    about = {"measures": measures, "majority": majority, "data": data, "model": model}
    write_json(
        folder / "environment.json",
        {
            **record.environment(),
            **about,
            "rehearsed": federation.rehearsed,
            "secret": federation.secrecy,
        },
    )
    write_json(folder / "partition.json", federation.data.population.summary())
    config, log = federation.config, None
    if config.codec.sends_slopes:
        log = create_log(folder / LOG, config_digest(config), trees.digest(task.params))
    record.write_config(folder, config)
    return log


def _evaluate(federation: Federation, folder: Path, state: RunState, watcher: Watcher) -> None:
    settings = federation.config.evaluate
    task, test, prefix = federation.task, federation.data.test, federation.prefix
    line, details = evaluate_global(task, state.params, test, settings.batch_size, prefix)
    lines = [line]
    if details:
        write_json(folder / record.DETAILS, {"round": state.round, **details})
    if settings.clients:
        population = federation.data.population
        key = Key(federation.config.seed).fold("evaluate", state.round)
        chosen = key.choice(population.size, min(settings.clients, population.size))
        clients = [population.client(c) for c in chosen]
        lines.append(evaluate_clients(task, state.params, clients, settings.batch_size))
    for line in lines:
        record.append(folder, record.EVALUATIONS, {"round": state.round, **line})
        watcher.evaluated({"round": state.round, **line})


def notices(line: Json, config: Config, cache_stopped: str) -> list[str]:
    """What a person should know about a round; each text is said once in a run."""
    texts = []
    if cache_stopped:
        texts.append(f"the prefix cache keeps no more examples: {cache_stopped}")
    if line["steps"] and line["skipped"] == line["steps"]:
        float16 = config.model.dtype == "float16"
        remedy = (
            "float16 overflows: set model.dtype = 'bfloat16'"
            if float16
            else "lower client.optimiser.lr"
        )
        texts.append(f"no step had a finite result, so nothing moves; {remedy}")
    if line["fallbacks"]:
        names = ", ".join(line["fallbacks"])
        texts.append(f"operators without a rule, computed one by one and slowly: {names}")
    return texts


FALLBACK = "fallback/"
"""Prefix of the metrics that count operators without a rule (``gradients.dual``)."""


def round_line(report: RoundReport, seconds: dict[str, float]) -> Json:
    """One round as the record keeps it."""

    def total(metric: str) -> float:
        return sum(u.metrics.get(metric, 0.0) for u in report.updates)

    peaks = [u.metrics["peak_bytes"] for u in report.updates if "peak_bytes" in u.metrics]
    fallbacks = {name for u in report.updates for name in u.metrics if name.startswith(FALLBACK)}
    return {
        "round": report.round,
        "loss": report.loss,
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "forwards": total("forwards"),
        "memory": {
            "peak_above_weights": int(max(peaks)) if peaks else None,
            "rss": resident_bytes(),
        },
        "cohort": list(report.cohort),
        "replies": len(report.updates),
        "examples": sum(u.n_examples for u in report.updates),
        "lost": losses_by_reason(report),
        "steps": int(total("steps")),
        "skipped": int(total("skipped")),
        "clamped": int(total("clamped")),
        "contributions": [dict(c) for c in report.contributions],
        "pending": report.pending,
        "abandoned": report.abandoned,
        "fallbacks": {n.removeprefix(FALLBACK): int(total(n)) for n in sorted(fallbacks)},
    }


def memory_groups(report: RoundReport, engines: Engines) -> Json:
    """The cohort's groups of ``plan.json``, and the measured peak above the weights by group."""
    peaks: dict[str, int] = {}
    for update in report.updates:
        if "peak_bytes" in update.metrics:
            peaks[str(engines.group(update.client))] = int(update.metrics["peak_bytes"])
    return {"cohort": [engines.group(c) for c in report.cohort], "peaks": peaks}


def _finish(federation: Federation, folder: Path, state: RunState) -> Result:
    """Adapter, model card and summary; the summary comes last and marks the run as finished."""
    rounds = record.read_lines(folder, record.ROUNDS)
    tests = [e for e in record.read_lines(folder, record.EVALUATIONS) if e["split"] == "test"]
    decides = federation.task.objective.measures.decides
    best = tests[0]
    for line in tests:
        best = line if decides.better(line, best) else best
    summary: Json = {
        "status": "finished",
        "rounds": state.round,
        "digest": trees.digest(state.params),
        "baseline": {
            "majority": federation.majority(),
            "untrained": decides.of(tests[0]),
        },
        "final": tests[-1],
        "best": best,
        "totals": {
            "bytes_up": sum(r["bytes_up"] for r in rounds),
            "bytes_down": sum(r["bytes_down"] for r in rounds),
            "seconds": sum(r["seconds"]["total"] for r in rounds),
            "forwards": sum(r["forwards"] for r in rounds),
        },
    }
    own_head = head_text(federation.task) is not None
    card = model_card(federation.config, federation.data, summary, own_head)
    save_adapter(federation.task, state.params, folder / "adapter", card)
    write_json(folder / record.SUMMARY, summary)
    return Result(folder, summary)


def _same_run(folder: Path, config: Config) -> bool:
    """Does the folder hold a run of these settings, wherever it was made and moved to?"""
    stored = configure(base=record.read_config(folder))
    return config_digest(stored) == config_digest(config)
