"""Testing the global model: on the global test set, and on clients' own test splits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from forefed.core.types import Json, Params
from forefed.data.examples import ClientData, Examples
from forefed.models.bag_of_words import Words
from forefed.models.objectives import Objective, Sums, mean_loss, merge
from forefed.models.prefix import FrozenPrefix
from forefed.models.task import Task, nothing_around

LOWEST = 0.1
"""The share of the clients that the lowest decile bounds."""


def evaluate_global(
    task: Task,
    params: Params,
    test: Examples,
    batch_size: int,
    prefix: FrozenPrefix | None = None,
    words: Words | None = None,
) -> tuple[Json, Json]:
    """Loss and quality on the fixed global test set, and the details of them that are no single
    numbers; ``prefix``: what is not computed again; ``words``: what texts' words add."""
    around = nothing_around if prefix is None else prefix.evaluation
    sums = task.evaluate(params, test, np.arange(len(test)), batch_size, around, words)
    return {"split": "test", **scores(task.objective, sums)}, task.objective.details(sums)


def evaluate_clients(
    task: Task,
    params: Params,
    clients: Sequence[ClientData],
    batch_size: int,
    private: Sequence[Params] = (),
    words: Words | None = None,
) -> tuple[Json, list[float | None]]:
    """The same on clients' own test splits: every example with equal weight, and how the metric
    that decides spreads over the clients (``client_mean``, ``client_worst``, ``client_decile``).

    ``private``: what each of them keeps to itself, so that each is tested with its own model (the
    split "personal" then); empty: all are tested with ``params``.

    Returns:
        The line, and the metric that decides of each client (None: it has no row to test on).
    """
    each = [
        task.evaluate({**params, **own}, c.examples, c.test, batch_size, words=words)
        if len(c.test)
        else None
        for c, own in zip(clients, private or [{}] * len(clients), strict=True)
    ]
    decides, tested = task.objective.measures.decides, [sums for sums in each if sums]
    found = [decides.of(scores(task.objective, sums)) if sums else None for sums in each]
    values = [value for value in found if value is not None]
    total = scores(task.objective, merge(tested)) if tested else {"loss": math.nan, "n": 0}
    split = "personal" if private else "clients"
    line = {"split": split, "clients": len(tested), **total, **spread(values, decides.sign)}
    return line, found


def beside(own: Sequence[float | None], common: Sequence[float | None], sign: int) -> Json:
    """Own models against the common one, client by client: how many are ``better`` off with their
    own, how many ``worse``, and what it gives to whom it gives least (``gain_worst``).

    Args:
        sign: 1 if more is better, else -1.
    """
    pairs = zip(own, common, strict=True)
    gains = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
    return {
        "better": sum(g > 0 for g in gains),
        "worse": sum(g < 0 for g in gains),
        "gain_worst": min(gains, default=0.0),
    }


def evaluate_nodes(
    task: Task,
    nodes: Mapping[int, Params],
    test: Examples,
    batch_size: int,
    prefix: FrozenPrefix | None = None,
) -> Json:
    """Every node's own model on the global test set, where there is no server: the mean over nodes,
    its spread, and ``each`` node's value of the metric that decides, by number (split "nodes")."""
    decides = task.objective.measures.decides
    lines = [evaluate_global(task, own, test, batch_size, prefix)[0] for own in nodes.values()]
    each = {str(c): decides.of(line) for c, line in zip(nodes, lines, strict=True)}
    values = [value for value in each.values() if value is not None]
    loss = float(np.mean([line["loss"] for line in lines]))
    total = {
        "loss": loss,
        "n": len(test),
        **({decides.key: float(np.mean(values))} if values else {}),
    }
    told = {"split": "nodes", "clients": len(nodes), **total, **spread(values, decides.sign)}
    return {**told, "each": each}


def spread(values: Sequence[float], sign: int) -> Json:
    """Mean, worst, and the value that a tenth of the clients do not reach.

    Args:
        sign: 1 if more is better, else -1.
    """
    if not values:
        return {}
    worse_first = sign * np.sort(sign * np.asarray(values))
    return {
        "client_mean": float(np.mean(values)),
        "client_worst": float(worse_first[0]),
        "client_decile": sign * float(np.quantile(sign * worse_first, LOWEST)),
    }


def scores(objective: Objective, sums: Sums) -> Json:
    """The mean loss, every metric, and the 95 % interval of the first (``low``, ``high``), of
    sums over ``n`` examples."""
    if not sums.get("n"):
        return {"loss": math.nan, "n": 0}
    ends = objective.interval(sums)
    between = {} if ends is None else {"low": ends[0], "high": ends[1]}
    line = {"loss": mean_loss(sums), **objective.results(sums), **between}
    return {**line, "n": objective.number(sums)}
