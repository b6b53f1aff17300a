"""Which LoRA matrices read one token at a time, and what they would read of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forefed.audit.rowspace import inside
from forefed.core.types import Batch, Params
from forefed.data.examples import Indices
from forefed.models.task import Task

LORA_A = ".lora_A."
AT_ONCE = 256
"""Tokens of the vocabulary that are tried at once."""


class _Found(Exception):
    pass


@dataclass(frozen=True)
class TokenLayers:
    """``names``: the A matrices that read the same input, a function of a token and its place."""

    task: Task
    names: tuple[str, ...]

    @staticmethod
    def of(task: Task, names: Sequence[str]) -> TokenLayers:
        """Of these parameters, those of the first block that read its input."""
        depth = {n: u.depth for u in task.units for n in u.params}
        first = [n for n in names if LORA_A in n and depth.get(n) == 0]
        reads = [n for n in first if _one_token(task, n)]
        return TokenLayers(task, tuple(reads))

    def scores(self, bases: Sequence[Tensor], vocabulary: Indices, places: int) -> list[Tensor]:
        """By basis: the best score of every token of the vocabulary over all places.

        Args:
            bases: row spaces [R, D].
            vocabulary: tokens to try.
            places: longest text that is thought of, with special tokens.
        """
        found: list[list[Tensor]] = [[] for _ in bases]
        if not any(len(basis) for basis in bases):
            return [torch.zeros(len(vocabulary)) for _ in bases]
        for x_NSD in self._inputs(vocabulary, places):
            for at, basis in enumerate(bases):
                scores = inside(basis, x_NSD.flatten(0, 1)).reshape(x_NSD.shape[:2])
                found[at].append(scores.amax(1))
        return [torch.cat(parts) for parts in found]

    def _inputs(self, vocabulary: Indices, places: int) -> Iterator[Tensor]:
        for start in range(0, len(vocabulary), AT_ONCE):
            ids = torch.as_tensor(vocabulary[start : start + AT_ONCE])
            yield read(self.task, self.names[0], ids[:, None].expand(-1, places).contiguous())


def read(task: Task, name: str, ids_BS: Tensor) -> Tensor:
    """What the module of an A matrix is given for these tokens: [B, S, D]."""
    module = task.model.get_submodule(name.split(LORA_A)[0])
    found: list[Tensor] = []

    def take(_: Any, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].detach().cpu().float())
        raise _Found

    handle = module.register_forward_pre_hook(take)
    inputs = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
    inputs["token_type_ids"] = torch.zeros_like(ids_BS)
    batch = Batch(inputs, torch.zeros(len(ids_BS), dtype=torch.int64))
    params: Params = task.params
    try:
        with torch.no_grad():
            task.logits(params, batch)
    except _Found:
        pass
    finally:
        handle.remove()
    return found[0]


def _one_token(task: Task, name: str) -> bool:
    """Does the input at a place depend on the token there alone?"""
    ids = torch.tensor([[5, 6, 7], [8, 6, 9]])
    x_BSD = read(task, name, ids)
    return torch.allclose(x_BSD[0, 1], x_BSD[1, 1], atol=1e-5)
