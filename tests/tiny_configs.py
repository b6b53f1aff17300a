"""The configuration of a tiny model of every family, and its code widened to float64."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

PAD, BOS, EOS = 1, 0, 2
VOCABULARY = 50
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("llama", "gpt2", "opt")
MORE_ENCODERS = ("albert", "deberta-v2", "modernbert", "t5")
MORE_DECODERS = ("qwen2", "qwen3", "gemma", "phi", "mistral")
EAGER = ("deberta-v2", "t5")
"""Families without scaled-dot-product attention in transformers."""
SLIDING_WINDOW = 4
"""Of Mistral and ModernBERT: fewer tokens than most examples have."""


@dataclass(frozen=True)
class Size:
    """What a tiny configuration is made of; heads are always two."""

    hidden: int = 16
    feed_forward: int = 24
    layers: int = 2
    positions: int = 32
    window: int = SLIDING_WINDOW


def tiny_config(family: str, size: Size = Size()) -> Any:
    """The family's own configuration class with few of everything, and no dropout that matters."""
    import transformers

    special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 2,
        "intermediate_size": size.feed_forward,
        "max_position_embeddings": size.positions,
        **special,
    }
    grouped = {**common, "num_key_value_heads": 1}
    match family:
        case "bert":
            return transformers.BertConfig(**common)
        case "roberta":
            return transformers.RobertaConfig(**common, type_vocab_size=1)
        case "distilbert":
            return transformers.DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=size.hidden,
                n_layers=size.layers,
                n_heads=2,
                hidden_dim=size.feed_forward,
                max_position_embeddings=size.positions,
                pad_token_id=PAD,
            )
        case "albert":  # one block, run ``layers`` times; embeddings narrower than the body
            return transformers.AlbertConfig(**common, embedding_size=8)
        case "deberta-v2":  # as DeBERTa-v3's checkpoints: relative positions in log buckets
            return transformers.DebertaV2Config(
                **common,
                type_vocab_size=0,
                relative_attention=True,
                position_buckets=4,
                pos_att_type=["p2c", "c2p"],
                norm_rel_ebd="layer_norm",
                share_att_key=True,
                position_biased_input=False,
            )
        case "modernbert":  # a layer of full attention, then one with a window of 4 tokens
            return transformers.ModernBertConfig(
                **common,
                cls_token_id=BOS,
                sep_token_id=EOS,
                local_attention=2 * size.window,
                layer_types=[
                    "sliding_attention" if i % 2 else "full_attention" for i in range(size.layers)
                ],
            )
        case "t5":  # as T5 1.1 and FLAN: a gated feed-forward
            return transformers.T5Config(
                vocab_size=VOCABULARY,
                d_model=size.hidden,
                d_kv=size.hidden // 2,
                d_ff=size.feed_forward,
                num_layers=size.layers,
                num_heads=2,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=16,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=BOS,
                **special,
            )
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=size.hidden,
                n_layer=size.layers,
                n_head=2,
                n_positions=size.positions,
                **special,
            )
        case "opt":
            return transformers.OPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=size.hidden,
                num_hidden_layers=size.layers,
                ffn_dim=size.feed_forward,
                num_attention_heads=2,
                max_position_embeddings=size.positions,
                word_embed_proj_dim=size.hidden,
                **special,
            )
        case "llama":
            return transformers.LlamaConfig(**grouped)
        case "qwen2":
            return transformers.Qwen2Config(**grouped)
        case "qwen3":
            return transformers.Qwen3Config(**grouped, head_dim=size.hidden // 2)
        case "gemma":
            return transformers.GemmaConfig(**grouped, head_dim=size.hidden // 2)
        case "phi":
            return transformers.PhiConfig(**common, partial_rotary_factor=0.5)
        case "mistral":
            return transformers.MistralConfig(
                **grouped, head_dim=size.hidden // 2, sliding_window=size.window
            )
    raise AssertionError(family)


def widen(model: nn.Module) -> None:
    """Lets a float64 model compute in float64 where its code says float32 (in place).

    RMSNorm, ModernBERT's rotary embedding and T5's softmax compute in float32 whatever they are
    given. The same code runs here with the one type for the other: every module gets the class of
    its name from a copy of its file.
    """
    for module in model.modules():
        name = type(module).__module__
        if re.match(r"transformers\.models\.\w+\.modeling_", name):
            copy = _widened(name)
            if copy is not None:
                module.__class__ = getattr(copy, type(module).__name__)


_COPIES: dict[str, ModuleType | None] = {}


def _widened(name: str) -> ModuleType | None:
    """A modelling file with float64 for float32; None if nothing in it would change."""
    if name not in _COPIES:
        original = sys.modules[name]
        text = inspect.getsource(original)
        wide = re.sub(r"\btorch\.float(32)?\b", "torch.float64", text)
        wide = wide.replace(".float()", ".double()")
        copy = None
        if wide != text and "torch.jit.script" not in text:
            copy = ModuleType(name)
            copy.__package__, copy.__file__ = original.__package__, original.__file__
            exec(compile(wide, str(original.__file__), "exec"), copy.__dict__)
        _COPIES[name] = copy
    return _COPIES[name]
