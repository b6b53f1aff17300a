"""``forefed plan``: from the words of the command line to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forefed.config.config import Config, assignment, configure, merge
from forefed.config.privacy import noise_plan
from forefed.core.errors import UserError, nearest
from forefed.core.settings import parse
from forefed.models.settings import ModelSettings
from forefed.plan import Plan, Scene, plan

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")


def plan_from_options(
    model: str,
    device: str | None,
    adapter: Sequence[str],
    scene: dict[str, Any],
    memory: str | None,
    precisions: Sequence[str] | None,
    say: Callable[[str], None],
) -> Plan:
    """A plan for SPRY's adapter, for that of a configuration, or for what the options describe.

    Args:
        model: a model's name, or a TOML file whose model, adapter, batches and budget are meant.
        scene: what else the options say of a ``Scene``; None where they say nothing.

    Raises:
        UserError: an option that does not fit; names it.
    """
    for name in precisions or ():
        if name not in PRECISIONS:
            raise UserError(f"--precision {name}: {nearest(name, PRECISIONS)}")
    said = {name: value for name, value in scene.items() if value is not None}
    if model.endswith(".toml"):
        config = configure(Path(model))
        raw = scene_of_config(config)
        memory = memory or min((str(b.budget) for b in config.memory), key=int, default=None)
    else:
        raw = {"model": {"name": model, "device": "auto"}}
        raw["adapter"] = {"kind": "tinylora", "r": 4, "u": 16}
    if "units" in said:
        raw.pop("split", None)
    for item in adapter:
        change = assignment(item)
        raw["adapter"] = change if "kind" in change else merge(raw["adapter"], change)
    if device is not None:
        raw["model"]["device"] = device
    raw = {**raw, **said, "model": parse(ModelSettings, raw["model"], "model")}
    return plan(parse(Scene, raw), memory, precisions=precisions or None, say=say)


def noise_from_options(model: str, epsilon: float, delta: float | None) -> list[str]:
    """What ``--epsilon`` asks: the noise that a configuration needs.

    Raises:
        UserError: no configuration, or nothing in it that is private.
    """
    if not model.endswith(".toml"):
        raise UserError(
            f"--epsilon: give a run's configuration (.toml) in the place of '{model}', as rounds, "
            "cohort and sampling decide what noise costs"
        )
    if not 0 < epsilon < math.inf:
        raise UserError(f"--epsilon {epsilon:g}: a number above 0")
    if delta is not None and not 0 < delta < 1:
        raise UserError(f"--delta {delta:g}: a number between 0 and 1, below 1 / units")
    return noise_plan(configure(Path(model)), epsilon, delta)


def scene_of_config(config: Config) -> dict[str, Any]:
    """What a configuration says of a ``Scene``, without a look at its data."""
    found: dict[str, Any] = {
        "model": config.model.model_dump(mode="json"),
        "adapter": config.adapter.model_dump(mode="json"),
        "seq": config.data.max_length,
        "split": max(1, config.cohort // getattr(config.assign, "replicas", config.cohort)),
    }
    heads: dict[str, int | str] = {"causal_lm": 0, "generate": 0, "regression": 1}
    heads |= {"spans": "spans", "choice": "words"}
    if config.data.task.head in heads:
        found["labels"] = heads[config.data.task.head]
    if config.client.batch_size != "all":
        found["batch"] = config.client.batch_size
    return found
