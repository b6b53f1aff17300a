"""Testing the global model: on the global test set, and on clients' own test splits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forefed.core.types import Json, Params
from forefed.data.examples import ClientData, Examples
from forefed.models.task import Task


def evaluate_global(task: Task, params: Params, test: Examples, batch_size: int) -> Json:
    """Loss and accuracy (or bits per byte) on the fixed global test set."""
    sums = task.evaluate(params, test, np.arange(len(test)), batch_size)
    return {"split": "test", **scores([sums])}


def evaluate_clients(
    task: Task, params: Params, clients: Sequence[ClientData], batch_size: int
) -> Json:
    """The same on clients' own test splits, every example with equal weight."""
    sums = [task.evaluate(params, c.examples, c.test, batch_size) for c in clients if len(c.test)]
    return {"split": "clients", "clients": len(sums), **scores(sums)}


def scores(sums: Sequence[dict[str, float]]) -> Json:
    """Means from sums: loss; accuracy for classes, bits per byte for language models."""
    total = {key: sum(s[key] for s in sums) for key in (sums[0] if sums else {})}
    if not total.get("weight"):
        return {"loss": math.nan, "n": 0}
    if "bytes" in total:
        return {
            "loss": total["nll_sum"] / total["weight"],
            "bits_per_byte": total["nll_sum"] / math.log(2) / total["bytes"],
            "n": int(total["weight"]),
        }
    return {
        "loss": total["loss_sum"] / total["weight"],
        "accuracy": total["correct"] / total["n"],
        "n": int(total["n"]),
    }


def better(a: Json, b: Json) -> bool:
    """Is evaluation ``a`` better than ``b``?"""
    if "accuracy" in a:
        return bool(a["accuracy"] > b["accuracy"])
    return bool(a.get("bits_per_byte", math.inf) < b.get("bits_per_byte", math.inf))
