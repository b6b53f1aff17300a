"""Models as ONNX graphs.

``write_graph``: the adapter is an input, so that logits are a function of parameters and texts, for
clients that only infer (forefed.slim): an engine without autograd is asked for its losses at points
around the parameters that the server sends. The frozen weights lie in a file beside the graph,
which ONNX Runtime maps into memory.

``write_whole``: a trained model whole, with what a text's words add to its logits.

Axes: B rows, S tokens of a row, F words that are kept, C classes, V words of a vocabulary.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forefed.core.errors import UserError
from forefed.core.types import Batch
from forefed.models.bag_of_words import BUCKETS, HASH_SHIFT, LOGS, STEP, Words, hashes
from forefed.models.place import few_words
from forefed.models.task import Task


class _Flat(nn.Module):
    """A task's logits of tensors in a row, as the exporter wants it."""

    def __init__(self, task: Task):
        super().__init__()
        self.model, self.task = task.model, task

    def forward(self, params: list[Tensor], inputs: list[Tensor]) -> Tensor:
        named = dict(zip(self.task.params, params, strict=True))
        batch = Batch(dict(zip(inputs_of(self.task), inputs, strict=True)), inputs[0][:, 0])
        return self.task.logits(named, batch)


def inputs_of(task: Task) -> list[str]:
    """What the graph reads of a batch."""
    return ["input_ids", "attention_mask"] + ["token_type_ids"] * task.logits.uses_types


def write_graph(task: Task, path: Path) -> None:
    """Writes the graph, and ``path``.data with its frozen weights.

    Inputs: the task's parameters by name, each of its shape; ``inputs_of`` as int64 [B, S], any
    number of rows and tokens. Output: ``logits`` [B, C].

    Raises:
        UserError: the exporter is not installed, or a model of another number format.
    """
    if any(x.dtype != torch.float32 for x in task.model.parameters()):
        raise UserError("a graph has float32 weights; set model.dtype = 'float32' for this run")
    params = [x.detach().clone() for x in task.params.values()]
    names = inputs_of(task)
    some, sizes = _texts(names)
    shapes: Any = ([None] * len(params), [sizes] * len(names))
    program = _exported(_Flat(task), (params, some), shapes, [*task.params, *names])
    program.save(str(path), external_data=True)


class _Bag(nn.Module):
    """``Words.logits`` of a padded batch, by operators that ONNX has: one table of counts a row in
    the place of a list of entries."""

    slots: Tensor
    idf: Tensor
    weight: Tensor
    logs: Tensor

    def __init__(self, words: Words):
        super().__init__()
        slots = torch.full((BUCKETS,), len(words.bag), dtype=torch.int64)  # the last is no word's
        slots[words.bag.buckets.long()] = torch.arange(len(words.bag))
        self.register_buffer("slots", slots)
        self.register_buffer("idf", words.bag.idf.double())
        self.register_buffer("weight", words.weight.double())
        self.register_buffer("logs", torch.tensor(LOGS, dtype=torch.float64))

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, C] float64."""
        one_BS, two_BP = hashes(ids_BS)
        here_BS = mask_BS > 0
        there_BE = torch.cat([here_BS, here_BS[:, 1:] & here_BS[:, :-1]], 1)
        slot_BE = self.slots[torch.cat([_bucket(one_BS), _bucket(two_BP)], 1)]
        none = torch.zeros((ids_BS.shape[0], len(self.idf) + 1), dtype=torch.int64)
        count_BF = none.scatter_add(1, slot_BE, there_BE.long())[:, :-1]
        value_BF = self.logs[count_BF.clamp_max(len(self.logs) - 1)] * self.idf
        length_B1 = (value_BF**2).sum(1, keepdim=True).sqrt()
        value_BF = value_BF / torch.where(length_B1 > 0, length_B1, 1.0)
        return (STEP * (value_BF / STEP).round()) @ self.weight


def _bucket(hash: Tensor) -> Tensor:
    """The uppermost bits without shifts, which ONNX has for unsigned numbers only."""
    low = torch.remainder(hash, 2**HASH_SHIFT)
    return torch.remainder((hash - low) // 2**HASH_SHIFT, BUCKETS)


class _Whole(nn.Module):
    """A model of transformers on texts of any length."""

    shift: Tensor | None

    def __init__(self, model: Any, words: Words | None, reads: int | None, end: int | None):
        super().__init__()
        self.model, self.reads, self.end = model, reads, end
        self.bag = None if words is None else _Bag(words)
        self.times = 1.0 if words is None else words.times
        shift = None if words is None else words.shift
        self.register_buffer("shift", None if shift is None else shift.double())

    def forward(self, ids_BS: Tensor, mask_BS: Tensor, types_BS: Tensor | None = None) -> Tensor:
        read_BS, there_BS = ids_BS, mask_BS
        if self.reads is not None:
            length_B1 = mask_BS.sum(1, keepdim=True)
            last_B1 = ids_BS.gather(1, (length_B1 - 1).clamp_min(0))
            read_BS, there_BS = ids_BS[:, : self.reads], mask_BS[:, : self.reads]
            if self.end is not None:  # as a tokeniser cuts it (words.beginnings)
                ended_B1 = (length_B1 > self.reads) & (last_B1 == self.end)
                at_S = torch.arange(read_BS.shape[1])
                read_BS = torch.where(ended_B1 & (at_S == self.reads - 1), self.end, read_BS)
        more = {} if types_BS is None else {"token_type_ids": types_BS[:, : self.reads]}
        logits = self.model(input_ids=read_BS, attention_mask=there_BS, **more).logits
        if self.bag is None:
            return logits
        added = self.bag(ids_BS, mask_BS)
        if self.shift is not None:
            added = added + self.shift
        return self.times * logits + added.to(logits.dtype)


def write_whole(
    model: Any,
    names: list[str],
    path: Path,
    words: Words | None = None,
    reads: int | None = None,
    end: int | None = None,
) -> None:
    """Writes a model of transformers with logits of a text, in one file (with ``path``.data beside
    it where it is large).

    Inputs: ``names`` as int64 [B, S], right-padded, any number of rows and tokens. Output:
    ``logits`` [B, C], as ``forefed.load`` gives them; of a language model [B, S, V], with no memory
    of earlier tokens: every call reads its texts from the beginning.

    Args:
        words: what texts' words add to the logits.
        reads: tokens of a text that the model reads, where its words are read beyond them.
        end: the token that ends a text.

    Raises:
        UserError: the exporter is not installed, or cannot express the model.
    """
    some, sizes = _texts(names)
    shapes: Any = tuple([sizes] * len(names))
    whole = _Whole(model.float(), words, reads, end)
    program = _exported(whole, tuple(some), shapes, names)
    apart = sum(x.numel() for x in model.parameters()) > LARGEST
    program.save(str(path), external_data=apart)


LARGEST = 450_000_000
"""Numbers of float32 in one file; a file of ONNX ends at 2 GB."""


def _texts(names: list[str]) -> tuple[list[Tensor], dict[int, Any]]:
    """Some padded texts, and what of their shape may be any number."""
    some = [torch.ones((2, 8), dtype=torch.int64) for _ in names]
    some[1][1, 5:] = 0  # a row that is padded, so that masks are there
    return some, {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}


def need_exporter() -> None:
    """Raises UserError where the packages that write graphs are not installed."""
    if any(importlib.util.find_spec(m) is None for m in ("onnx", "onnxscript")):
        raise UserError("a graph is written by onnx and onnxscript; pip install 'forefed[onnx]'")


def _exported(module: nn.Module, some: Any, shapes: Any, names: list[str]) -> Any:
    need_exporter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module.eval(),
                some,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=names,
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            why = few_words(error)
            raise UserError(f"torch's exporter makes no graph of this model ({why})") from error
    assert program is not None
    return program
