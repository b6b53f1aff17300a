"""A model as an ONNX graph whose adapter is an input: logits as a function of parameters and texts.

For clients that only infer (forefed.slim): an engine without autograd is asked for its losses at
points around the parameters that the server sends. The frozen weights lie in a file beside the
graph, which ONNX Runtime maps into memory.
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
    if any(importlib.util.find_spec(m) is None for m in ("onnx", "onnxscript")):
        raise UserError("a graph is written by onnx and onnxscript; pip install 'forefed[onnx]'")
    if any(x.dtype != torch.float32 for x in task.model.parameters()):
        raise UserError("a graph has float32 weights; set model.dtype = 'float32' for this run")
    params = [x.detach().clone() for x in task.params.values()]
    names = inputs_of(task)
    some = [torch.ones((2, 8), dtype=torch.int64) for _ in names]
    some[1][1, 5:] = 0  # a row that is padded, so that masks are there
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    shapes: Any = ([None] * len(params), [sizes] * len(names))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Flat(task).eval(),
            (params, some),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[*task.params, *names],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=True)
