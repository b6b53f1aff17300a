"""Training that begins with an adapter that is there already (``model.adapter``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forefed.core.errors import UserError, several
from forefed.core.types import Json
from forefed.models.adapters import ADAPTERS, Adapter, Lora
from forefed.models.inspect import read_object
from forefed.models.task import Task

CONFIG = "adapter_config.json"
BY_LOAD = ", to be loaded by forefed.load"
"""Stands behind the kind of adapter in an export that plain PEFT would read wrongly, without a word
where the head's shape is that of the class of transformers: PEFT and transformers know no such kind
and stop with this text (``KeyError``)."""

SAME = (("r", "r"), ("lora_alpha", "alpha"), ("use_rslora", "rslora"))
"""What PEFT's LoRA and ours must have alike: its name of the setting, and ours."""
NO_MATRICES = "dummy-target-modules"
"""What PEFT calls the targets of an adapter that has none: a head alone."""


def check_adapter(folder: Path, adapter: Adapter, base: str) -> None:
    """Whether a saved adapter is one of this kind, of these settings, and for this base.

    Args:
        base: the portable name of the base model.

    Raises:
        UserError: it is not; says what to set.
    """
    path = folder.expanduser() / CONFIG
    if not path.is_file():
        raise UserError(
            f"model.adapter: '{folder}' holds no {CONFIG}; give the folder of an adapter"
        )
    about = read_object(path)
    theirs = str(about.get("base_model_name_or_path") or "")
    if theirs and _last(theirs) != _last(base):
        raise UserError(
            f"model.adapter: '{folder}' is an adapter of '{theirs}', and model.name means "
            f"'{base}'; set model.name to that base (if it is the same, correct the name in "
            f"{CONFIG})"
        )
    kind = _kind(about)
    if kind == "lora" and isinstance(adapter, Lora):
        kind = adapter.kind  # of one form; which it is its tensors say
    if kind not in ADAPTERS.kinds():
        raise UserError(
            f"model.adapter: '{folder}' is of the kind '{kind}', which no adapter here is; merge "
            "it into its base and give that as model.name"
        )
    if kind != adapter.kind:
        raise UserError(
            f"model.adapter: '{folder}' is of the kind '{kind}', and adapter.kind = "
            f"'{adapter.kind}'; set adapter.kind = '{kind}'"
        )
    if isinstance(adapter, Lora):
        _check_lora(about, adapter, folder)


def _kind(about: Json) -> str:
    """Of the adapters here; PEFT's own name in small letters where it is none of them."""
    found = str(about.get("peft_type", "")).removesuffix(BY_LOAD).lower()
    if found == "lora" and about.get("target_modules") == NO_MATRICES:
        return "head"
    return "bitfit" if found == "beft" else found


def _check_lora(about: Json, adapter: Lora, folder: Path) -> None:
    for theirs, ours in SAME:
        there, here = about.get(theirs), getattr(adapter, ours)
        if there is not None and there != here:
            raise UserError(
                f"model.adapter: '{folder}' has {theirs} = {there}, and adapter.{ours} = {here}; "
                f"set adapter.{ours} = {str(there).lower()}"
            )
    special = [k for k in ("rank_pattern", "alpha_pattern", "use_dora") if about.get(k)]
    if special:
        raise UserError(
            f"model.adapter: '{folder}' uses PEFT's {special[0]}, which no adapter here has; merge "
            "it into its base and give that as model.name"
        )


def begun_with(task: Task, folder: Path) -> Task:
    """The task at a saved adapter's values.

    Raises:
        UserError: the adapter belongs to other matrices, another base, classes or features; says
            which.
    """
    from forefed.models.export import load_adapter  # which loads models itself

    try:
        params = load_adapter(task, folder.expanduser())
    except UserError as error:
        hint = "adapter.targets and adapter.layers must be those that it was trained with"
        raise UserError(f"model.{error} ({hint})") from None
    _check_head(task, folder.expanduser())
    inside = dict(task.model.named_parameters())
    for name, value in params.items():
        inside[name].data = value.clone()  # what the model holds are the first values
    return replace(task, params=params)


def _check_head(task: Task, folder: Path) -> None:
    """Whether a saved head of the same shape means the same classes and reads the same features,
    as far as the folder says so (an export of a run does)."""
    from forefed.models.outside import HEAD  # which loads models itself

    if not (folder / HEAD).is_file():
        return
    about = read_object(folder / HEAD)
    labels, pooling = about.get("labels"), about.get("pooling")
    here = task.model.get_base_model()
    if labels != list(task.label_names):
        raise UserError(
            f"model.adapter: '{folder}' tells {several([str(x) for x in labels or []])} apart, in "
            f"this order, and the rows here {several(list(task.label_names))}; give rows of the "
            "same classes"
        )
    if pooling != here.pooling:
        raise UserError(
            f"model.adapter: the head in '{folder}' reads model.pooling = '{pooling}', and it is "
            f"'{here.pooling}' here; set model.pooling = '{pooling}'"
        )
    if about.get("layers", here.layers) != here.layers:
        raise UserError(
            f"model.adapter: the head in '{folder}' reads model.layers = '{about['layers']}', and "
            f"it is '{here.layers}' here; set model.layers = '{about['layers']}'"
        )


def _last(name: str) -> str:
    return name.rstrip("/").replace("\\", "/").rpartition("/")[2].lower()
