"""What the head reads of a row, and the head's place among the trained tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forefed.core.errors import UserError
from forefed.core.types import Params
from forefed.data.examples import Examples, Indices
from forefed.models.task import Task


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
    task: Task, params: Params, examples: Examples, rows: Indices, batch_size: int
) -> Tensor:
    """The head's input for these rows, [len(rows), D] on the CPU, in their order.

    With a batch size of 1 a row's features do not depend on the other rows.
    """
    weight, _ = names_of_head(task)
    module = weight.split(".modules_to_save.")[0]
    linear = task.model.get_submodule(module)
    order = np.argsort(examples.lengths()[rows], kind="stable")
    parts: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        parts.append(inputs[0].detach().cpu())

    handle = linear.register_forward_pre_hook(take)
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                task.logits(params, examples.batch(rows[order[start : start + batch_size]]))
    finally:
        handle.remove()
    width = task.params[weight].shape[1]
    sorted_ND = torch.cat(parts) if parts else torch.zeros(0, width)
    found = torch.empty_like(sorted_ND)
    found[torch.from_numpy(order.copy())] = sorted_ND
    return found
