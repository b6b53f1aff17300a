"""Rows for fake clients, drawn like those of a few compromised ones: the hybrid adversary of
Mozaffari, Choudhary, Houmansadr, "Fake or compromised?" (arXiv 2403.06319).

Departure: the generator is class-conditional and as simple as can be (published: a diffusion model
of images): a text of a class has the length and the first and last token of one of its rows, and
tokens drawn as often as they occur in the class; numbers are Gaussian by class and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forefed.core.keys import Key
from forefed.data.examples import ClientData, Examples


def synthetic(pool: Sequence[ClientData], labels: str, key: Key) -> ClientData:
    """A fake client's rows, as many as a client of the pool has on average.

    Args:
        pool: the compromised clients' data.
        labels: the tensor with the classes, of tensors of one's own.
    """
    count = max(1, round(sum(len(d.train) for d in pool) / len(pool)))
    examples: Any = pool[0].examples
    own = hasattr(examples, "tensors")
    made = _tensors(pool, labels, count, key) if own else _texts(pool, count, key)
    return ClientData(made, np.arange(count), np.zeros(0, dtype=np.int64))


def _texts(pool: Sequence[ClientData], count: int, key: Key) -> Examples:
    examples = pool[0].examples  # of one population: all clients share them
    rows = np.concatenate([d.train for d in pool])
    chosen = rows[key.fold("rows").integers(count, len(rows))]
    tokens: list[NDArray[np.int32]] = []
    for i, row in enumerate(chosen):
        alike = rows[examples.labels[rows] == examples.labels[row]]
        words = np.concatenate([_inner(examples, r) for r in alike])
        text = examples.tokens[examples.offsets[row] : examples.offsets[row + 1]].copy()
        if len(text) > 2 and len(words):
            drawn = key.fold("words", i).integers(len(text) - 2, len(words))
            text[1:-1] = words[drawn]
        tokens.append(text)
    types = examples.types
    sizes = [len(t) for t in tokens]
    return replace(
        examples,
        tokens=np.concatenate(tokens),
        types=None if types is None else np.zeros(sum(sizes), dtype=types.dtype),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        labels=examples.labels[chosen],
        n_bytes=examples.n_bytes[chosen],
    )


def _inner(examples: Examples, row: int) -> NDArray[np.int32]:
    """A text's tokens without the first and the last one, which are special where there are any."""
    return examples.tokens[examples.offsets[row] + 1 : max(examples.offsets[row + 1] - 1, 0)]


def _tensors(pool: Sequence[ClientData], labels: str, count: int, key: Key) -> Any:
    examples: Any = [d.examples for d in pool]
    rows = {n: torch.cat([e.tensors[n] for e in examples]) for n in examples[0].tensors}
    y = rows[labels]
    chosen = torch.from_numpy(key.fold("rows").integers(count, len(y)))
    made = {n: x[chosen].clone() for n, x in rows.items()}
    for name, x in rows.items():
        if name == labels or not x.is_floating_point():
            continue
        noise = key.fold("numbers", name).normal((count, *x.shape[1:])).to(x)
        for c in y[chosen].unique():
            some = x[y == c]
            drawn = some.mean(0) + some.std(0, correction=0) * noise
            where = (y[chosen] == c).reshape(-1, *([1] * (x.dim() - 1)))
            made[name] = torch.where(where, drawn, made[name])
    return replace(examples[0], tensors=made, count=count)
