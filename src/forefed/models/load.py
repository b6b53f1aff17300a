"""Loads a pretrained model and its tokeniser: whole, of one key, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.data.tasks import Head
from forefed.models.adapters import Adapter
from forefed.models.attach import draw_missing
from forefed.models.attention import attend_in
from forefed.models.begin import begun_with
from forefed.models.inspect import Facts, look
from forefed.models.intact import check_tokens, check_values, judge, untrained_poolers
from forefed.models.mapped import CAUSAL, described, filled, place_of, write
from forefed.models.objectives import AnswerSpans, Objective, objective_of
from forefed.models.pages import Pages
from forefed.models.place import explained, portable_name, quiet
from forefed.models.pooling import choose, install
from forefed.models.relabel import fit_head
from forefed.models.settings import ModelSettings
from forefed.models.task import Task, task_from_model
from forefed.models.unchanged import while_unchanged

__all__ = [
    "Base",
    "check_files",
    "check_model",
    "load_base",
    "load_task",
    "load_tokenizer",
    "portable_name",
]


@dataclass(frozen=True)
class Base:
    """A base model in eval mode on its device, and its tokeniser.

    ``notes`` are sentences that a person should read before training.
    """

    model: Any
    tokenizer: Any
    facts: Facts
    notes: tuple[str, ...] = ()
    pages: Pages | None = None
    """The map in which its matrices are (``model.weights``)."""


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
    base = load_base(settings, key, label_names, head, whole=adapter.reads_weights)
    task = task_from_model(
        base.model,
        adapter,
        key,
        label_names=label_names,
        base_name=portable_name(settings),
        quantise=settings.quantise,
        head=head,
        notes=base.notes,
        pages=base.pages,
    )
    if settings.adapter is not None:
        task = begun_with(task, settings.adapter)
    return task, base.tokenizer


def load_base(
    settings: ModelSettings,
    key: Key,
    label_names: Sequence[str] | None,
    head: Head | None = None,
    whole: bool = True,
) -> Base:
    """The base model and its tokeniser.

    A head that the checkpoint lacks, or has for other classes, is drawn from the key; nothing else
    is. torch's global generator is left as it was.

    Args:
        whole: are its matrices read before they are quantised? Where not, those of a map that is
            there already are left out.

    Raises:
        UserError: the model cannot be had, is damaged, or does not fit the task.
    """
    device, dtype = choose_device(settings), choose_dtype(settings)
    objective = objective_of(label_names, head)
    seen = _look_closely(settings, objective)
    pages = None if settings.weights == "memory" else _pages(settings, seen, objective, dtype)
    if pages is None or whole:
        model, _ = _from_pretrained(seen.facts, objective, settings.name, dtype=dtype)
    else:
        model = filled(copy.deepcopy(seen.shape), pages, dtype)
    drawn, note = fit_head(model, objective, seen.facts.classes, seen.drawn, seen.resized)
    poolers = seen.poolers
    if objective.pooled:
        install(model, choose(settings, seen.facts), objective.outputs, settings.layers)
        drawn |= set(model.new_head)
        poolers = poolers if model.pooling == "pooler" else ()
    std = getattr(model.config, "initializer_range", None) or 0.02
    draw_missing(model, drawn, std, key)
    if pages is None:
        check_values(model, settings.name)
    causal = _is_causal(model) if pages is None else pages.metadata[CAUSAL] == "True"
    _sees(causal, objective, settings.name)
    attend_in(model.to(device), settings.attention)
    # A pooler that was never trained is part of the head, or it would stay random.
    model.untrained_pooler = poolers
    model.config.pad_token_id = seen.tokenizer.pad_token_id
    notes = tuple(text for text in (seen.facts.note, note) if text)
    return Base(model.eval(), seen.tokenizer, seen.facts, notes, pages)


def _pages(settings: ModelSettings, seen: _Seen, objective: Objective, dtype: torch.dtype) -> Pages:
    """The map of a model, written where there is none yet."""
    assert settings.quantise != "none", "refused in the settings"
    said = described(seen.facts.folder, objective.auto, settings.quantise, dtype)
    place = place_of(said)
    if not place.is_file():
        model, _ = _from_pretrained(seen.facts, objective, settings.name, dtype=dtype)
        check_values(model, settings.name)
        try:
            write(place, model.eval(), settings.quantise, said, _is_causal(model), seen.drawn)
        except OSError as error:
            raise UserError(
                f"model.weights: the map {place} cannot be written ({error.strerror}); set the "
                "environment variable FOREFED_CACHE to a folder that can be, on a disk with room, "
                "or model.weights = 'memory'"
            ) from None
    return Pages(place, said)


def check_model(
    settings: ModelSettings, label_names: Sequence[str] | None, head: Head | None = None
) -> tuple[Facts, tuple[str, ...]]:
    """What can be said of a model for a task without reading its weights, and notes on it.

    Args:
        label_names: the classes, or as many texts as there are classes.

    Raises:
        UserError: what ``load_base`` would raise, but for values in the weights.
    """
    choose_device(settings)
    objective = objective_of(label_names, head)
    seen = _look_closely(settings, objective)
    shape = copy.deepcopy(seen.shape)  # which is remembered, and changed where it fits
    _, note = fit_head(shape, objective, seen.facts.classes, seen.drawn, seen.resized)
    if objective.pooled:
        choose(settings, seen.facts)
    return seen.facts, tuple(text for text in (seen.facts.note, note) if text)


def check_files(settings: ModelSettings, head: Head) -> Any:
    """The model's tokeniser, once its folder is known to be whole: said before texts are read and
    tokenised, which takes minutes where there are many.

    Raises:
        UserError: what ``load_base`` would raise, but for values in the weights and for classes.
    """
    choose_device(settings)
    some = None if head == "causal_lm" else ("0", "1")  # a head may have any number of classes
    return _look_closely(settings, objective_of(some, head)).tokenizer


@dataclass(frozen=True)
class _Seen:
    """A model without its weights (``shape``: on torch's device "meta"), and what a run draws.

    ``resized``: a tensor of the head is there in another shape. ``poolers``: never trained.
    """

    tokenizer: Any
    facts: Facts
    shape: Any
    drawn: set[str]
    poolers: tuple[str, ...]
    resized: bool


def _read_closely(settings: ModelSettings, objective: Objective) -> _Seen:
    tokenizer = load_tokenizer(settings)
    facts = look(settings)
    _fits(facts, objective, settings.name)
    shape, report = _from_pretrained(facts, objective, settings.name, device_map="meta")
    drawn = judge(shape, report, objective, facts)
    check_tokens(tokenizer, shape.get_input_embeddings().num_embeddings, settings.name)
    resized = any(name in drawn for name, *_ in report["mismatched_keys"])
    return _Seen(tokenizer, facts, shape, drawn, untrained_poolers(shape, drawn), resized)


_look_closely = while_unchanged(_read_closely, lambda seen: replace(seen, drawn={*seen.drawn}))


def load_tokenizer(settings: ModelSettings) -> Any:
    """The model's tokeniser, with a padding token (the end-of-text token where it has none).

    Raises:
        UserError: it is not there, is damaged, or has neither of the two tokens.
    """
    return _tokenizer(settings)


def _read_tokenizer(settings: ModelSettings) -> Any:
    import transformers

    folder = look(settings).folder
    with (
        quiet(),
        explained(
            lambda why: (
                f"model.name: the tokeniser of '{settings.name}' cannot be read ({why}); "
                "its files are damaged or incomplete"
            )
        ),
    ):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        raise UserError(
            f"model.name: the tokeniser of '{settings.name}' has neither a padding nor an "
            "end-of-text token; give one of them in its tokenizer_config.json"
        )
    return tokenizer


_tokenizer = while_unchanged(_read_tokenizer, lambda tokenizer: tokenizer)


def _from_pretrained(
    facts: Facts, objective: Objective, name: str, **how: Any
) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report of what the checkpoint lacks or has too much."""
    import transformers

    auto: Any = getattr(transformers, objective.auto)
    with (
        quiet(),
        torch.random.fork_rng(devices=[]),
        explained(lambda why: f"model.name: '{name}' does not fit this task ({why})"),
    ):
        model, report = auto.from_pretrained(
            facts.folder,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **objective.options(),
            **how,
        )
    return model, report


def _fits(facts: Facts, objective: Objective, name: str) -> None:
    """Refuses architectures that cannot learn the task, by their configuration."""
    if facts.config.is_encoder_decoder:
        raise UserError(
            f"model.name: '{name}' is an encoder-decoder model; only encoders "
            "(BERT and its kin) and decoders (Llama, GPT-2, OPT and their kin) are supported"
        )
    if objective.writes and not facts.decoder:
        raise _looks_ahead(name, objective)
    if isinstance(objective, AnswerSpans) and facts.decoder:
        raise _sees_nothing(name)


def _sees(causal: bool, objective: Objective, name: str) -> None:
    """Refuses a model whose tokens see too much or too little for the task."""
    if objective.writes and not causal:
        raise _looks_ahead(name, objective)
    if isinstance(objective, AnswerSpans) and causal:
        raise _sees_nothing(name)


def _sees_nothing(name: str) -> UserError:
    return UserError(
        f"model.name: '{name}' is a decoder: its first token, which stands for \"no answer\", "
        "sees nothing of the text; data.task.kind = 'qa' needs an encoder (BERT and its kin)"
    )


def _looks_ahead(name: str, objective: Objective) -> UserError:
    return UserError(
        f"model.name: '{name}' is an encoder: its tokens see the ones after them; "
        f"data.task.kind = '{objective.head}' needs a decoder (Llama, GPT-2, OPT and their kin)"
    )


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
