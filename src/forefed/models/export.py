"""Saves trained tensors as a PEFT adapter that others load with ``PeftModel.from_pretrained``.

The files: ``adapter_config.json``, ``adapter_model.safetensors`` (trained tensors, and TinyLoRA's
frozen factors, so that the loaded model gives the run's logits exactly) and ``README.md``; and what
the head stands on, where the class of transformers would read something else (``outside.py``).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forefed.core.errors import UserError
from forefed.core.types import Params
from forefed.models.attach import ADAPTER_NAME
from forefed.models.functional import Call
from forefed.models.outside import HEAD, head_text
from forefed.models.task import Task

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


def save_adapter(task: Task, params: Params, folder: Path, card: str) -> None:
    """Writes the adapter; the folder appears complete or not at all.

    Args:
        task: the task that was trained.
        params: all of its trainable tensors.
        folder: where to; an adapter that is already there is replaced.
        card: the text of the model card (Markdown).

    Raises:
        UserError: the folder holds something that is no adapter.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).is_file():
        raise UserError(f"export: '{folder}' exists and is no adapter; give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {n: x.detach().cpu().contiguous() for n, x in _state(task, params).items()}
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    building.chmod(0o755)  # mkdtemp's folders are for their owner only
    try:
        (building / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        (building / CONFIG).write_text(_config_text(task), encoding="utf-8")
        (building / CARD).write_text(card, encoding="utf-8")
        if (head := head_text(task)) is not None:
            (building / HEAD).write_text(head, encoding="utf-8")
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}-replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(folder, replaced)
            os.replace(building, folder)
            shutil.rmtree(replaced)
        else:
            os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_adapter(task: Task, folder: Path) -> Params:
    """The trained tensors of a saved adapter, by the task's names.

    Raises:
        UserError: no adapter there, or one of another base model, adapter or set of classes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise UserError(f"adapter: '{folder}' holds no {WEIGHTS}")
    try:
        saved = load(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"adapter: '{path}' is damaged ({error})") from None
    ours = _state(task, task.params)
    if saved.keys() != ours.keys():
        other = sorted(saved.keys() ^ ours.keys())[0]
        raise UserError(f"adapter: '{folder}' belongs to another model or adapter (see '{other}')")
    # A saved entry that shares memory with one of our trainable tensors is that tensor.
    names = {x.data_ptr(): name for name, x in task.params.items()}
    params: Params = {}
    for key, x in ours.items():
        if saved[key].shape != x.shape:
            raise UserError(
                f"adapter: '{key}' of '{folder}' has shape {tuple(saved[key].shape)}, this task "
                f"needs {tuple(x.shape)}"
            )
        if x.data_ptr() in names:
            params[names[x.data_ptr()]] = saved[key].to(x)
        elif not torch.equal(saved[key].to(x), x):
            raise UserError(f"adapter: '{folder}' was trained on another base model ('{key}')")
    return {name: params[name] for name in task.params}


def _state(task: Task, params: Params) -> dict[str, Tensor]:
    """The adapter's tensors by the names that PEFT gives them in a file."""
    from peft import get_peft_model_state_dict

    call = Call({name: x.to(task.device) for name, x in params.items()})
    state: dict[str, Tensor] = task.logits.functional.run(
        call, get_peft_model_state_dict, task.model, adapter_name=ADAPTER_NAME
    )
    return state


def _config_text(task: Task) -> str:
    config: dict[str, Any] = task.model.peft_config[ADAPTER_NAME].to_dict()
    config["base_model_name_or_path"] = task.base_name
    config["inference_mode"] = True
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"
