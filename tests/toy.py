"""The toy world: a small classifier over tokens, and clients of awkward sizes.

Sizes are unequal, the last batch is ragged, one client has one example, one has none, and one lacks
a class. The model has three body units and a head, so splits, rotations and exact heads all occur.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import forefed.local.training as training
from forefed.core import trees
from forefed.core.keys import Key
from forefed.core.types import Batch, Order, Params, Unit, Update
from forefed.data.examples import ClientData, Examples
from forefed.local import TaskView, Trainer

VOCABULARY, WIDTH, CLASSES = 20, 5, 3
SIZES = (7, 13, 1, 9, 0, 4)  # batches of 4: ragged ends everywhere
HEAD = frozenset({"head.weight", "head.bias"})


class ToyLoss:
    """Mean cross-entropy of h = x + sum of tanh layers over mean token embeddings."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        self.embedding = Key(5).normal((VOCABULARY, WIDTH)).to(dtype)

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        mask = batch.inputs["attention_mask"].to(self.embedding.dtype)
        x = (self.embedding[batch.inputs["input_ids"]] * mask[..., None]).sum(1)
        h = x / mask.sum(1, keepdim=True)
        for i in range(3):
            h = h + torch.tanh(h @ params[f"layer.{i}.weight"])
        logits = h @ params["head.weight"] + params["head.bias"]
        return torch.nn.functional.cross_entropy(logits, batch.labels)

    def weight(self, batch: Batch) -> int:
        return batch.size


def toy_params(dtype: torch.dtype = torch.float64) -> Params:
    key = Key(11)
    params = {
        f"layer.{i}.weight": 0.3 * key.fold(i).normal((WIDTH, WIDTH)).to(dtype) for i in range(3)
    }
    params["head.weight"] = 0.5 * key.fold("head").normal((WIDTH, CLASSES)).to(dtype)
    params["head.bias"] = torch.zeros(CLASSES, dtype=dtype)
    return params


def toy_units() -> tuple[Unit, ...]:
    body = [Unit(f"layer.{i}", (f"layer.{i}.weight",), i, WIDTH * WIDTH) for i in range(3)]
    head = Unit("head", ("head.weight", "head.bias"), 3, WIDTH * CLASSES + CLASSES, is_head=True)
    return (*body, head)


def toy_task(dtype: torch.dtype = torch.float64) -> TaskView:
    loss = ToyLoss(dtype)
    return TaskView(loss, loss, HEAD)


def toy_clients() -> list[ClientData]:
    """Six clients over one data set; client 3 has no example of class 2."""
    key = Key(17)
    n = sum(SIZES)
    lengths = 1 + key.fold("lengths").integers(n, 6)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = key.fold("tokens").integers(int(offsets[-1]), VOCABULARY).astype(np.int32)
    labels = key.fold("labels").integers(n, CLASSES)
    ends = np.cumsum(SIZES)
    third = slice(ends[2], ends[3])
    labels[third] = np.minimum(labels[third], 1)
    examples = Examples(tokens, None, offsets, labels, np.zeros(n, dtype=np.int64), pad_id=0)
    starts = ends - np.array(SIZES)
    none = np.zeros(0, dtype=np.int64)
    return [ClientData(examples, np.arange(a, b), none) for a, b in zip(starts, ends, strict=True)]


def trained(train: Trainer, order: Order, data: ClientData) -> tuple[Update, Params]:
    """A client's update, and the change of its own parameters, seen by a spy on its last step."""
    start = trees.pick(order.params, order.assigned)
    seen = [start]
    original = training.advance

    def spy(*args):
        params, state = original(*args)
        seen.append(params)
        return params, state

    training.advance = spy
    try:
        update, _ = train(order, data, {})
    finally:
        training.advance = original
    return update, trees.subtract(start, seen[-1])
