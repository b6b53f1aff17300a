"""What the head reads of a row, and the head's place among the trained tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forefed.core.errors import UserError
from forefed.core.types import Params
from forefed.data.examples import Examples, Indices
from forefed.models.task import Task

TOGETHER = 16
"""Rows of equal length in one forward pass."""


def names_of_head(task: Task) -> tuple[str, str]:
    """The parameters' names of the last linear map: weight and bias.

    Raises:
        UserError: a head without a bias, or of more than one layer.
    """
    weights = [n for n in task.head if n.endswith(".weight")]
    biases = [n for n in task.head if n.endswith(".bias")]
    if len(weights) != 1 or len(biases) != 1:
        raise UserError(
            "start: this model's own head has no bias, or several layers, so it has no closed "
            "form; set model.pooling = 'mean' (or 'last'), or start.kind = 'none'"
        )
    return weights[0], biases[0]


def features(
    task: Task,
    params: Params,
    examples: Examples,
    rows: Indices,
    batch_size: int,
    same: dict[int, bool] | None = None,
) -> Tensor:
    """The head's input for these rows, [len(rows), D] on the CPU, in their order.

    With a batch size of 1 a row's features do not depend on the other rows. Rows of equal length
    are computed together all the same where that gives the same bits: the last row of the first
    batch of every length is computed alone, too, and where it differs, so are all the others.
    Adapters at their first values, where they change nothing, are left out.

    Args:
        same: by length what was found so; None: nothing yet.
    """
    same = {} if same is None else same
    read = _Reader(task, params)
    lengths = examples.lengths()[rows]
    order = np.argsort(lengths, kind="stable")
    width = task.params[names_of_head(task)[0]].shape[1]
    found = torch.zeros(len(rows), width)
    with read.ready(examples, rows[:1]):
        for part in _equal(order, lengths) if batch_size == 1 else [order][: len(order)]:
            size, length = batch_size, int(lengths[part[0]])
            if batch_size == 1 and len(part) > 1:
                if length not in same:
                    few = rows[part[:TOGETHER]]
                    same[length] = torch.equal(read(examples, few)[-1:], read(examples, few[-1:]))
                size = TOGETHER if same[length] else 1
            for start in range(0, len(part), size):
                chosen = part[start : start + size]
                x_BD = read(examples, rows[chosen])
                found = found.to(x_BD.dtype)
                found[torch.from_numpy(chosen)] = x_BD
    return found


def _equal(order: Indices, lengths: Indices) -> list[Indices]:
    """Positions that are sorted by length, cut where it changes."""
    return np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else []


class _Read(Exception):
    """The head's input is there; the rest of the forward pass is not needed."""

    def __init__(self, x: Tensor):
        self.x = x


class _Reader:
    """The head's input of batches, at given parameters."""

    def __init__(self, task: Task, params: Params):
        weight, _ = names_of_head(task)
        self.task, self.params = task, params
        self.linear = task.model.get_submodule(weight.split(".modules_to_save.")[0])
        body = [n for n in task.params if n not in task.head]
        self.first = all(torch.equal(params[n], task.params[n]) for n in body)
        self.plain = False

    @contextmanager
    def ready(self, examples: Examples, row: Indices) -> Iterator[None]:
        """While open, adapters that change nothing are left out; tried on one row."""
        if not self.first or not len(row):
            yield
            return
        expected = self(examples, row)
        with self.task.model.disable_adapter():
            self.plain = True
            self.plain = torch.equal(self(examples, row), expected)
            if self.plain:
                yield
        if not self.plain:
            yield

    def __call__(self, examples: Examples, rows: Indices) -> Tensor:
        batch = examples.batch(rows)
        if self.plain:
            return self._input(lambda: self.task.logits.of_call(batch))
        return self._input(lambda: self.task.logits(self.params, batch))

    def _input(self, run: Callable[[], Tensor]) -> Tensor:
        def take(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            raise _Read(inputs[0].detach().cpu())

        handle = self.linear.register_forward_pre_hook(take)
        try:
            with torch.no_grad():
                run()
        except _Read as read:
            return read.x
        finally:
            handle.remove()
        raise AssertionError("the model ran past its head")
