"""Tiny random Hugging Face models of every family, built without a file or a network.

``tiny_task("bert", Lora())`` is a Task like any other: two or three blocks, hidden size 16,
vocabulary 50, padding token 1, float64 unless said.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from forefed.core.keys import Key
from forefed.core.types import Params
from forefed.data.examples import Examples
from forefed.models.adapters import Adapter
from forefed.models.attach import draw_missing
from forefed.models.task import Task, task_from_model

PAD = 1
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("llama", "gpt2", "opt")
FAMILIES = (*ENCODERS, *DECODERS)
KINDS = tuple((f, False) for f in FAMILIES) + tuple((f, True) for f in DECODERS)
"""(family, causal): every family with every head that it has."""


def tiny_task(
    family: str,
    adapter: Adapter,
    causal: bool = False,
    dtype: torch.dtype = torch.float64,
    n_labels: int = 3,
    n_layers: int = 2,
    key: Key = Key(0),  # noqa: B008 (frozen)
) -> Task:
    """A Task on a tiny model whose every weight is drawn from the key."""
    names = None if causal else tuple(f"class {i}" for i in range(n_labels))
    model = tiny_model(family, causal, dtype, n_labels, n_layers, key)
    return task_from_model(model, adapter, key, label_names=names, base_name=f"tiny/{family}")


def tiny_model(
    family: str,
    causal: bool = False,
    dtype: torch.dtype = torch.float64,
    n_labels: int = 3,
    n_layers: int = 2,
    key: Key = Key(0),  # noqa: B008 (frozen)
) -> Any:
    """The tiny base model alone, in eval mode."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = _config(family, n_layers)
    config.num_labels = n_labels
    config.pad_token_id = PAD
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config, attn_implementation="sdpa")
    draw_missing(model, {n for n, _ in model.named_parameters()}, 0.3, key.fold("base"))
    model = model.eval().to(dtype)
    if dtype == torch.float64:
        _widen_norms(model)
    return model


def tiny_examples(
    n: int = 7, causal: bool = False, n_labels: int = 3, types: bool = True
) -> Examples:
    """Random examples of 3 to 11 tokens; no two neighbours have the same length."""
    key = Key(5)
    lengths = np.array([3 + (4 * i) % 9 for i in range(n)])
    total = int(lengths.sum())
    labels = key.fold("label").integers(n, below=2 if causal else n_labels)
    return Examples(
        tokens=(3 + key.fold("token").integers(total, below=47)).astype(np.int32),
        types=key.fold("type").integers(total, below=2).astype(np.uint8) if types else None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=labels,
        n_bytes=3 * lengths,
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


def _config(family: str, n_layers: int) -> Any:
    import transformers

    common = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "pad_token_id": PAD,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    if family == "bert":
        return transformers.BertConfig(**common)
    if family == "roberta":
        return transformers.RobertaConfig(**common, type_vocab_size=1)
    if family == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=50,
            dim=16,
            n_layers=n_layers,
            n_heads=2,
            hidden_dim=24,
            max_position_embeddings=32,
            pad_token_id=PAD,
        )
    if family == "llama":
        return transformers.LlamaConfig(**common, num_key_value_heads=1)
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=50,
            n_embd=16,
            n_layer=n_layers,
            n_head=2,
            n_positions=32,
            pad_token_id=PAD,
            bos_token_id=0,
            eos_token_id=2,
        )
    assert family == "opt", family
    return transformers.OPTConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=n_layers,
        ffn_dim=24,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        pad_token_id=PAD,
        bos_token_id=0,
        eos_token_id=2,
    )


def _widen_norms(model: nn.Module) -> None:
    """Llama's RMSNorm computes in float32 whatever it is given; torch's own keeps float64."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm):
            wide = nn.RMSNorm(module.weight.shape, module.variance_epsilon, dtype=torch.float64)
            wide.weight.data = module.weight.data
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, wide)
