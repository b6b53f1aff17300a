"""A model's shape without its weights: enough to say what training it would take.

A model of the same configuration with few blocks and random weights costs per block what the real
one costs, so a plan for a large model needs neither its weights nor the memory for them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.tasks import Head
from forefed.models.adapters import Adapter
from forefed.models.inspect import longest_text, look
from forefed.models.load import choose_device, choose_dtype
from forefed.models.mapped import write
from forefed.models.objectives import Objective, objective_of
from forefed.models.pages import Pages
from forefed.models.place import quiet
from forefed.models.pooling import choose, install
from forefed.models.settings import ModelSettings
from forefed.models.task import Task, task_from_model


def load_config(settings: ModelSettings, labels: int) -> Any:
    """The configuration of the model; nothing else is read.

    Raises:
        UserError: no such model.
    """
    config = look(settings, weights=False).config
    if labels:
        config.num_labels = labels
    config.pad_token_id = config.pad_token_id if config.pad_token_id is not None else 0
    return config


def depth_of(config: Any) -> int:
    """The number of blocks."""
    return int(config.get_text_config().num_hidden_layers)


def check_length(config: Any, seq: int, where: str) -> None:
    """Raises UserError for texts longer than the model's positions; names the setting."""
    limit = longest_text(config)
    if limit is not None and seq > limit:
        raise UserError(
            f"{where}: {seq} tokens, but the model has positions for {limit}; give at most {limit}"
        )


def random_task(
    settings: ModelSettings,
    adapter: Adapter,
    key: Key,
    label_names: Sequence[str] | None,
    layers: int,
    head: Head | None = None,
) -> Task:
    """A Task of the model's shape with ``layers`` blocks and random weights."""
    objective = objective_of(label_names, head)
    config = shortened(load_config(settings, objective.outputs), layers)
    model = _build(config, objective)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.03, 0.03)  # no zeros, no denormals: both would be fast or slow
    if objective.pooled:
        pooling = choose(settings, look(settings, weights=False))
        install(model, pooling, objective.outputs, settings.layers)
    model = model.to(choose_device(settings), choose_dtype(settings))
    pages = None
    if settings.weights == "mapped":
        assert settings.quantise != "none", "refused in the settings"
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "map.safetensors"
            write(place, model, settings.quantise, {}, False)
            pages = Pages(place)  # which stays open when its name is gone
    return task_from_model(
        model,
        adapter,
        key,
        label_names=label_names,
        base_name=settings.name,
        quantise=settings.quantise,
        head=head,
        pages=pages,
    )


def shortened(config: Any, layers: int) -> Any:
    """The configuration with ``layers`` blocks."""
    inner = config.get_text_config()
    inner.num_hidden_layers = layers
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[:layers]
    return config


def _build(config: Any, objective: Objective) -> Any:
    import transformers

    auto: Any = getattr(transformers, objective.auto)
    with quiet(), torch.random.fork_rng(devices=[]):
        return auto.from_config(config).eval()
