"""Testing the global model: on the global test set, and on clients' own test splits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forefed.core.types import Json, Params
from forefed.data.examples import ClientData, Examples
from forefed.models.prefix import FrozenPrefix
from forefed.models.task import Task


def evaluate_global(
    task: Task,
    params: Params,
    test: Examples,
    batch_size: int,
    prefix: FrozenPrefix | None = None,
) -> Json:
    """Loss and quality on the fixed global test set; ``prefix``: what is not computed again."""
    around = {} if prefix is None else {"around": prefix.evaluation}
    sums = task.evaluate(params, test, np.arange(len(test)), batch_size, **around)
    return {"split": "test", **scores([sums])}


def evaluate_clients(
    task: Task, params: Params, clients: Sequence[ClientData], batch_size: int
) -> Json:
    """The same on clients' own test splits, every example with equal weight."""
    sums = [task.evaluate(params, c.examples, c.test, batch_size) for c in clients if len(c.test)]
    return {"split": "clients", "clients": len(sums), **scores(sums)}


def scores(sums: Sequence[dict[str, float]]) -> Json:
    """Means from sums: loss; accuracy for classes, bits per byte for language models, exact match
    and F1 for answers."""
    total = {key: sum(s[key] for s in sums) for key in (sums[0] if sums else {})}
    if not total.get("n"):
        return {"loss": math.nan, "n": 0}
    if "bytes" in total:
        return {
            "loss": total["nll_sum"] / total["weight"],
            "bits_per_byte": total["nll_sum"] / math.log(2) / total["bytes"],
            "n": int(total["weight"]),
        }
    loss = total["loss_sum"] / total["weight"] if total["weight"] else math.nan
    worth = {"correct": "accuracy", "exact": "exact_match", "f1": "f1"}
    means = {name: total[key] / total["n"] for key, name in worth.items() if key in total}
    return {"loss": loss, **means, "n": int(total["n"])}


def quality(line: Json) -> float | None:
    """The number by which an evaluation is judged; None where it is missing."""
    return next((line[name] for name in ("accuracy", "f1", "bits_per_byte") if name in line), None)


def score(line: Json) -> str:
    """The quality of one evaluation in words."""
    if "accuracy" in line:
        return f"accuracy {line['accuracy']:.3f}"
    if "f1" in line:
        return f"F1 {line['f1']:.3f}, exact match {line['exact_match']:.3f}"
    return f"{line.get('bits_per_byte', math.nan):.3f} bits per byte"


def always(line: Json) -> str:
    """What gets the score of the baseline "majority"."""
    return "no answer at all" if "f1" in line else "majority class"


def better(a: Json, b: Json) -> bool:
    """Is evaluation ``a`` better than ``b``?"""
    ours, theirs = quality(a), quality(b)
    if ours is None or theirs is None:
        return ours is not None
    return ours < theirs if "bits_per_byte" in a else ours > theirs
