"""What is tested before a run's first round and after others, and what of it is the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forefed.core.files import write_json
from forefed.core.keys import Key
from forefed.core.metrics import Metric
from forefed.core.types import Json
from forefed.federation.state import RunState
from forefed.models.bag_of_words import Words
from forefed.run import record
from forefed.run.build import Federation
from forefed.run.callback import Told
from forefed.run.evaluate import beside, evaluate_clients, evaluate_global, evaluate_nodes


def evaluate(
    federation: Federation,
    folder: Path,
    state: RunState,
    told: Told,
    words: Words | None,
    mark: str = "",
) -> Json:
    """Test, and record it; returns the line of the global test.

    Args:
        words: what texts' words add to the logits.
        mark: what the line is of, where it is not a round's end: "all_rows" (the clients' held-out
            rows are learned, so none is tested on) or "solved" (the head is another one).
    """
    settings = federation.config.evaluate
    task, test, prefix = federation.task, federation.data.test, federation.prefix
    size = settings.batch_size
    line, details = evaluate_global(task, state.params, test, size, prefix, words)
    lines = [{**line, **({mark: True} if mark else {})}]
    if details:
        write_json(folder / record.DETAILS, {"round": state.round, **details})
    personal = federation.config.sharing.personal and federation.in_rehearsal
    count = settings.clients or (federation.config.cohort if personal else 0)
    if count and mark != "all_rows":
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


def tests_of(folder: Path) -> list[Json]:
    """The evaluations on the test rows, in order."""
    return [e for e in record.read_lines(folder, record.EVALUATIONS) if e["split"] == "test"]


def best_of(tests: Sequence[Json], decides: Metric) -> Json:
    """The best evaluation, the earliest of equals."""
    best = tests[0]
    for line in tests:
        best = line if decides.better(line, best) else best
    return best
