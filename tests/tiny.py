"""Tiny random Hugging Face models of every family, built without a file or a network.

``tiny_task("bert", Lora())`` is a Task like any other: two or three blocks, hidden size 16,
vocabulary 50, padding token 1, float64 unless said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.data.examples import Examples
from forefed.data.tasks import Head
from forefed.models.adapters import Adapter
from forefed.models.attach import draw_missing
from forefed.models.objectives import objective_of
from forefed.models.task import Task, task_from_model
from tiny_configs import (
    DECODERS,
    EAGER,
    ENCODERS,
    EOS,
    MORE_DECODERS,
    MORE_ENCODERS,
    PAD,
    VOCABULARY,
    Size,
    tiny_config,
    widen,
)

FAMILIES = (*ENCODERS, *DECODERS)
KINDS = tuple((f, False) for f in FAMILIES) + tuple((f, True) for f in DECODERS)
"""(family, causal): six families with every head that they have."""
ALL_FAMILIES = (*ENCODERS, *MORE_ENCODERS, *DECODERS, *MORE_DECODERS)
ALL_KINDS = tuple((f, False) for f in ALL_FAMILIES) + tuple(
    (f, True) for f in (*DECODERS, *MORE_DECODERS)
)


def tiny_task(
    family: str,
    adapter: Adapter,
    causal: bool = False,
    dtype: torch.dtype = torch.float64,
    n_labels: int = 3,
    n_layers: int = 2,
    key: Key = Key(0),  # noqa: B008 (frozen)
    size: Size | None = None,
    head: Head | None = None,
) -> Task:
    """A Task on a tiny model whose every weight is drawn from the key."""
    names = None if causal or head else tuple(f"class {i}" for i in range(n_labels))
    model = tiny_model(family, causal, dtype, n_labels, n_layers, key, size, head)
    base = f"tiny/{family}"
    return task_from_model(model, adapter, key, label_names=names, base_name=base, head=head)


def tiny_model(
    family: str,
    causal: bool = False,
    dtype: torch.dtype = torch.float64,
    n_labels: int = 3,
    n_layers: int = 2,
    key: Key = Key(0),  # noqa: B008 (frozen)
    size: Size | None = None,
    head: Head | None = None,
) -> Any:
    """The tiny base model alone, in eval mode."""
    import transformers

    config = tiny_config(family, Size(layers=n_layers) if size is None else size)
    config.num_labels = 2 if head == "spans" else n_labels
    auto: Any = getattr(transformers, objective_of(None if causal else (), head).auto)
    attention = "eager" if family in EAGER else "sdpa"
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config, attn_implementation=attention)
    draw_missing(model, {n for n, _ in model.named_parameters()}, 0.3, key.fold("base"))
    for name, x in model.named_parameters():  # biases and norms that do something
        if x.dim() == 1:
            x.data += 0.2 * key.fold("vector", name).normal(x.shape)
    model = model.eval().to(dtype)
    if dtype == torch.float64:
        widen(model)
    return model


def tiny_examples(
    n: int = 7,
    causal: bool = False,
    n_labels: int = 3,
    types: bool = True,
    lengths: Sequence[int] = (),
    ends: bool = False,
) -> Examples:
    """Random examples of 3 to 11 tokens; no two neighbours have the same length.

    ``lengths``: others than these. ``ends``: each ends in the end-of-text token, as T5 wants.
    """
    key = Key(5)
    sizes = np.array(lengths or [3 + (4 * i) % 9 for i in range(n)])
    total = int(sizes.sum())
    labels = key.fold("label").integers(len(sizes), below=2 if causal else n_labels)
    tokens = (3 + key.fold("token").integers(total, below=VOCABULARY - 3)).astype(np.int32)
    if ends:
        tokens[np.cumsum(sizes) - 1] = EOS
    return Examples(
        tokens=tokens,
        types=key.fold("type").integers(total, below=2).astype(np.uint8) if types else None,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        labels=labels,
        n_bytes=3 * sizes,
        pad_id=PAD,
        causal=causal,
    )


def moved(params: Params, key: Key = Key(9), scale: float = 0.3) -> Params:  # noqa: B008
    """The parameters at a random point, where no gradient vanishes (LoRA's B starts at 0)."""
    return {n: x + scale * key.fold(n).normal(x.shape).to(x) for n, x in params.items()}


def random_like(params: Params, key: Key) -> Params:
    """A Gaussian direction."""
    return {n: key.fold(n).normal(x.shape).to(x) for n, x in params.items()}


def with_dropout(adapter: Adapter, p: float = 0.4) -> Adapter:
    return adapter.model_copy(update={"dropout": p})


def without_dropout(batch: Any) -> Any:
    return dataclasses.replace(batch, dropout=None)
