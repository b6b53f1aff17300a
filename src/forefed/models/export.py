"""Saves what was trained in the forms that others load: PEFT's, or a whole model of transformers.

"peft"   the adapter as it was trained: ``adapter_config.json`` and ``adapter_model.safetensors``
         (trained tensors, and TinyLoRA's frozen factors, so that the logits are the run's exactly)
"lora"   the same update as a plain LoRA: LoRA's own, or TinyLoRA's with its exact rank
"model"  the base with the update added to its weights, which needs no PEFT
"gguf"   the same as a GGUF file, where the base came from one (``gguf_export.py``)
"onnx"   the same as an ONNX graph from tokens to logits: of classes, labels and numbers with the
         head on the pooling that it stands on and what the texts' words add, of language models
         without a memory of earlier tokens (``graph.py``)

Beside them: ``README.md``, the model's ``config.json`` (the classes' names, the padding token), the
tokeniser with the padding token that was chosen for it, and what the head stands on, where the
class of transformers would read something else (``outside.py``).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from forefed.core.errors import UserError
from forefed.core.files import PARTIAL, rename_folder
from forefed.core.hyper import (
    BIAS,
    EMBEDDING,
    INSIDE,
    OUTSIDE,
    SHIFT,
    features,
    generated,
    part_of,
)
from forefed.core.lora import CORE, FOLDED, is_a, is_b, is_folded
from forefed.core.types import Params
from forefed.data.encoding import end_of
from forefed.models.adapters import Adapter, BitFit, Lora, TinyLora
from forefed.models.attach import ADAPTER_NAME
from forefed.models.bag_of_words import Words
from forefed.models.functional import Call
from forefed.models.graph import inputs_of, write_whole
from forefed.models.outside import HEAD, guarded, head_text, save_words
from forefed.models.place import quiet
from forefed.models.task import Task

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODEL, CARD, GRAPH = "config.json", "README.md", "model.onnx"


def save_adapter(
    task: Task,
    params: Params,
    folder: Path,
    card: str,
    tokenizer: Any = None,
    form: Form = "peft",
    words: Words | None = None,
    reads: int | None = None,
    source: Path | None = None,
) -> None:
    """Writes the adapter; the folder appears complete or not at all.

    Args:
        task: the task that was trained. ``form = "model"`` uses it up: its base is changed.
        params: all of its trainable tensors.
        folder: where to; an adapter that is already there is replaced.
        card: the text of the model card (Markdown).
        tokenizer: as ``load_tokenizer`` makes it; None: none is written.
        form: see above.
        words: what texts' words add to the logits.
        reads: tokens of a text that the model reads, where its words are read beyond them.
        source: the GGUF file that the base came from; None: it did not.

    Raises:
        UserError: the folder holds something that is no adapter, or there is no such form of it.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).is_file():
        raise UserError(f"export: '{folder}' exists and is no adapter; give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=PARTIAL, dir=folder.parent))
    building.chmod(0o755)  # mkdtemp's folders are for their owner only
    try:
        end = None if tokenizer is None else end_of(tokenizer)
        if form == "gguf":
            assert source is not None, "refusal() says it"
            _save_gguf(task, params, source, building / f"{folder.name}.gguf")
        elif form == "onnx":
            names = inputs_of(task)  # merging uses the task up
            merged = _merged(task, params)
            write_whole(merged, names, building / GRAPH, words, reads, end)
        else:
            _FORMS[form](task, params, building)
        if form != "gguf":  # which has all of it in one file
            (building / MODEL).write_text(_model_text(task), encoding="utf-8")
        (building / CARD).write_text(card, encoding="utf-8")
        if form != "onnx":  # whose graph has both
            if (head := head_text(task, reads, end)) is not None:
                (building / HEAD).write_text(head, encoding="utf-8")
            if words is not None:
                save_words(words, building)
        if tokenizer is not None and form != "gguf":
            _save_tokenizer(tokenizer, task, building)
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}-replaced{PARTIAL}")
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(folder, replaced)
            rename_folder(building, folder)
            shutil.rmtree(replaced)
        else:
            rename_folder(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def refusal(adapter: Adapter, form: Form, source: Path | None = None) -> str | None:
    """Why there is no such form of what this adapter trains; None where there is.

    Args:
        source: the GGUF file that the base came from.
    """
    if form == "gguf" and source is None:
        return (
            "export: --as gguf: the base of this run did not come from a GGUF file; take --as "
            "model, and llama.cpp's convert_hf_to_gguf.py makes a GGUF file of it"
        )
    if form == "lora" and not isinstance(adapter, Lora | TinyLora):
        return (
            f"export: adapter.kind = '{adapter.kind}' trains no update of low rank, so it is no "
            "LoRA; leave --as out for PEFT's own form, or take --as model"
        )
    return None


def _save_peft(task: Task, params: Params, folder: Path) -> None:
    config = task.model.peft_config[ADAPTER_NAME].to_dict()
    tensors = _state(task, params)
    for name in (n for n in params if n.endswith(f".{CORE}")):  # B (R A)
        a = f"{name.removesuffix(CORE)}lora_A.weight"
        tensors[a] = params[name].to(tensors[a]) @ tensors[a]
    tensors |= _made(tensors)
    if any(is_folded(n) and bool(x.any()) for n, x in params.items()):
        assert isinstance(task.adapter, Lora)
        tensors, rank = _with_dense_parts(tensors, params)
        config |= {"r": rank, "lora_alpha": task.adapter.scale * rank, "use_rslora": False}
    _write(folder, tensors, config, task)


def _made(tensors: Params) -> Params:
    """The factors B that a network makes (``core.hyper``), under LoRA's own names."""
    inside = {
        part: x for n, x in tensors.items() if (part := part_of(n)) in (EMBEDDING, INSIDE, SHIFT)
    }
    found: Params = {}
    for name in (n for n in tensors if part_of(n) == BIAS):
        stem = name.removesuffix(BIAS)
        f_w = features(inside[EMBEDDING], inside[INSIDE], inside[SHIFT])
        rank = len(tensors[f"{stem}lora_A.weight"])
        made = generated(f_w, tensors[f"{stem}{OUTSIDE}"], tensors[name], rank)
        found[f"{stem}lora_B.weight"] = made
    return found


def _with_dense_parts(tensors: Params, params: Params) -> tuple[Params, int]:
    """LoRA's tensors with the dense parts as further rows of A and columns of B, and their rank."""
    whole = dict(tensors)
    for name in filter(is_folded, params):
        a, b = (f"{name.removesuffix(FOLDED)}lora_{x}.weight" for x in "AB")
        u, s, vt = torch.linalg.svd(params[name].cpu().double(), full_matrices=False)
        k = int((s > 1e-9 * s[0]).sum()) if len(s) else 0
        roots = s[:k].sqrt()
        whole[a] = torch.cat([tensors[a].cpu().double(), roots[:, None] * vt[:k]])
        whole[b] = torch.cat([tensors[b].cpu().double(), u[:, :k] * roots], 1)
    rank = max(len(x) for n, x in whole.items() if is_a(n))
    for n, x in whole.items():
        if is_a(n):
            whole[n] = pad(x, (0, 0, 0, rank - len(x))).to(tensors[n].dtype)
        elif is_b(n):
            whole[n] = pad(x, (0, rank - x.shape[1])).to(tensors[n].dtype)
    return whole, rank


def _save_lora(task: Task, params: Params, folder: Path) -> None:
    """B R A of TinyLoRA is a LoRA of its rank whose B is B R; its scale is 1."""
    reason = refusal(task.adapter, "lora")
    if reason is not None:
        raise UserError(reason)
    if isinstance(task.adapter, Lora):
        return _save_peft(task, params, folder)
    from peft import LoraConfig

    assert isinstance(task.adapter, TinyLora)
    r, tensors = task.adapter.r, _state(task, params)
    kept = {name: x for name, x in tensors.items() if "tinylora_" not in name}
    call = Call({name: x.to(task.device) for name, x in params.items()})
    factors = task.logits.functional.run(call, _factors, task.model)
    for name, (a_rI, b_Or) in factors.items():
        missing = r - len(a_rI)  # of a matrix with fewer singular vectors
        kept[f"{name}.lora_A.weight"] = pad(a_rI, (0, 0, 0, missing))
        kept[f"{name}.lora_B.weight"] = pad(b_Or, (0, missing))
    old = task.model.peft_config[ADAPTER_NAME]
    config = LoraConfig(
        r=r,
        lora_alpha=r,
        task_type=old.task_type,
        target_modules=old.target_modules,
        modules_to_save=old.modules_to_save,
        fan_in_fan_out=old.fan_in_fan_out,
    )
    _write(folder, kept, config.to_dict(), task)


def _factors(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, I] and B R [O, r] of every TinyLoRA layer, by its module's name."""
    found = {}
    for name, module in model.named_modules():
        if ADAPTER_NAME in getattr(module, "tinylora_A", {}):
            a_rI, b_Or = module.tinylora_A[ADAPTER_NAME], module.tinylora_B[ADAPTER_NAME]
            core_rr = module._compute_R(ADAPTER_NAME)
            found[name] = (a_rI.to(core_rr), b_Or.to(core_rr) @ core_rr)
    return found


def _save_model(task: Task, params: Params, folder: Path) -> None:
    """The base with the update in its weights, in one file or in parts."""
    if head_text(task) is not None:
        raise UserError(
            "export: the head of this model stands on another pooling than the class of "
            "transformers reads, so there is no whole model of it; leave --as out (forefed.load "
            "reads it), take --as onnx, or train with model.pooling = 'pooler'"
        )
    merged = _merged(task, params)
    with quiet():
        merged.save_pretrained(folder)
    (folder / MODEL).unlink()


def _save_gguf(task: Task, params: Params, source: Path, file: Path) -> None:
    from forefed.models.gguf_export import save_gguf

    inner = task.model.get_base_model().state_dict()
    base = {n.replace(".base_layer.", "."): x.clone() for n, x in inner.items() if BASE in n}
    save_gguf(base, _merged(task, params), source, file, file.stem)


BASE = ".base_layer."


def _merged(task: Task, params: Params) -> Any:
    """The model of transformers with the update in its weights; the task's is used up."""
    without = [
        name
        for name, module in task.model.named_modules()
        if isinstance(task.adapter, BitFit)
        and hasattr(module, "base_layer")
        and module.base_layer.bias is None
    ]
    if without:
        raise UserError(
            f"export: '{without[0].removeprefix('base_model.model.')}' has no bias in this "
            "architecture, so one that was trained cannot be a part of the model; leave --as out "
            "for PEFT's own form"
        )
    for name, parameter in task.model.named_parameters():
        if name in params:
            parameter.data = params[name].to(parameter)
    for name in (n for n in params if n.endswith(f".{CORE}")):
        a = task.model.get_submodule(name.removesuffix(f".{CORE}")).lora_A[ADAPTER_NAME].weight
        a.data = params[name].to(a) @ a.data
    for name, x in _made(_state(task, params)).items():
        b = (
            task.model.get_submodule(name.removesuffix(".lora_B.weight"))
            .lora_B[ADAPTER_NAME]
            .weight
        )
        b.data = x.to(b)
    for name in filter(is_folded, params):
        assert isinstance(task.adapter, Lora)
        module = task.model.get_submodule(name.removesuffix(f".{FOLDED}"))
        dense, weight = task.adapter.scale * params[name], module.base_layer.weight
        weight.data += (dense.T if module.fan_in_fan_out else dense).to(weight)
    return task.model.merge_and_unload()


Form = Literal["peft", "lora", "model", "gguf", "onnx"]
FORMS: tuple[Form, ...] = get_args(Form)
_FORMS: dict[Form, Callable[[Task, Params, Path], None]] = {
    "peft": _save_peft,
    "lora": _save_lora,
    "model": _save_model,
}


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
            continue
        if is_b(key) and f"{key.removesuffix('lora_B.weight')}{BIAS}" in saved:
            continue  # the network made it
        core = saved.get(f"{key.removesuffix('lora_A.weight')}{CORE}") if is_a(key) else None
        fixed = x if core is None else core.to(x) @ x  # as ``_save_peft`` writes it: R A
        if not torch.equal(saved[key].to(x), fixed):
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


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], task: Task) -> None:
    from safetensors.torch import save

    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    (folder / WEIGHTS).write_bytes(save(plain, metadata={"format": "pt"}))
    config = {**config, "base_model_name_or_path": task.base_name, "inference_mode": True}
    config = guarded(config, task)
    sets = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    text = json.dumps(sets, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _model_text(task: Task) -> str:
    """The model's configuration: what a caller would have to know of classes and padding."""
    config = json.loads(task.model.config.to_json_string(use_diff=True))
    for name in ("_name_or_path", "use_cache"):  # this machine's; training's
        config.pop(name, None)
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _save_tokenizer(tokenizer: Any, task: Task, folder: Path) -> None:
    """The tokeniser; without segments, where the model was not given any."""
    names = tokenizer.model_input_names
    if not task.logits.uses_types:
        tokenizer.model_input_names = [n for n in names if n != "token_type_ids"]
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_input_names = names
