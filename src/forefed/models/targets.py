"""From a symbolic target ("attention-qv") to the linear modules of one model.

The same roles have other names in every family, so a role is a pattern on the module's name below
its block (key and value are named like query):

| role | BERT, RoBERTa, ELECTRA | DistilBERT | Llama-like | OPT | GPT-2 |
|---|---|---|---|---|---|
| query | attention.self.query | attention.q_lin | q_proj | q_proj | c_attn (fused) |
| attention output | attention.output.dense | attention.out_lin | o_proj | out_proj | attn.c_proj |
| feed-forward output | output.dense | ffn.lin2 | mlp.down_proj | fc2 | mlp.c_proj |

| role | ALBERT | DeBERTa-v2 | ModernBERT | Phi | T5 |
|---|---|---|---|---|---|
| query | attention.query | query_proj | Wqkv (fused) | q_proj | SelfAttention.q |
| attention output | attention.dense | output.dense | attn.Wo | self_attn.dense | SelfAttention.o |
| feed-forward output | ffn_output | output.dense | mlp.Wo | mlp.fc2 | DenseReluDense.wo |
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from forefed.core.errors import UserError
from forefed.models.blocks import Blocks, linear_modules

_FUSED = "c_attn|qkv_proj|query_key_value|Wqkv|in_proj"
_ROLES = {
    "query": rf"(.*\.)?(query|query_proj|q_proj|q_lin|q|wq|{_FUSED})",
    "key": rf"(.*\.)?(key|key_proj|k_proj|k_lin|k|wk|{_FUSED})",
    "value": rf"(.*\.)?(value|value_proj|v_proj|v_lin|v|wv|{_FUSED})",
    "attention output": r"(.*\.)?\w*(attn|[aA]ttention)\.(.*\.)?"
    r"(output\.dense|dense|o_proj|out_proj|out_lin|c_proj|o|wo|Wo)",
    "feed-forward output": r"(?!.*(attn|[aA]ttention)\.)(.*\.)?"
    r"(output\.dense|down_proj|fc2|lin2|c_proj|ffn_output|dense_4h_to_h|w2|wo|Wo)",
    "linear": r".*",
}
SYMBOLS = {
    "attention-qv": ("query", "value"),
    "qv-and-outputs": ("query", "value", "attention output", "feed-forward output"),
    "kv-and-feed-forward": ("key", "value", "feed-forward output"),
    "all-linear": ("linear",),
}


def resolve(
    model: nn.Module,
    blocks: Blocks,
    head: tuple[str, ...],
    targets: str | tuple[str, ...],
    layers: str | tuple[int, ...],
) -> list[str]:
    """Full names of the targeted modules, in the order of the model.

    Args:
        model: the Hugging Face model, without adapters.
        blocks: its blocks.
        head: names of the head's modules, never targeted (nor is a language model's output matrix).
        targets: a key of ``SYMBOLS``, or names and endings of names.
        layers: "all", "first:N", "last:N" (all blocks where there are fewer), or block numbers.

    Raises:
        UserError: a target or a layer that this model does not have; lists the candidates.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    candidates = [
        name
        for name, module in linear_modules(model).items()
        if module is not output and not any(name == h or name.startswith(f"{h}.") for h in head)
    ]
    wanted = _layer_numbers(layers, len(blocks.names))
    in_layers = [n for n in candidates if layers == "all" or blocks.index(n) in wanted]
    chosen: set[str] = set()
    if isinstance(targets, str):
        for role in SYMBOLS[targets]:
            pattern = re.compile(_ROLES[role])
            hits = [
                n
                for n in in_layers
                if blocks.index(n) is not None and pattern.fullmatch(blocks.relative(n))
            ]
            if not hits:
                raise _nothing(f"'{targets}' (no {role} projection was recognised)", candidates)
            chosen.update(hits)
    else:
        for target in targets:
            hits = [n for n in in_layers if n == target or n.endswith(f".{target}")]
            if not hits:
                raise _nothing(f"'{target}'", candidates)
            chosen.update(hits)
    return [n for n in candidates if n in chosen]


def feed_forward_outputs(blocks: Blocks, modules: Iterable[str]) -> list[str]:
    """Those of these modules that are the output of a block's feed-forward part."""
    pattern = re.compile(_ROLES["feed-forward output"])
    return [n for n in modules if pattern.fullmatch(blocks.relative(n))]


def _layer_numbers(layers: str | tuple[int, ...], count: int) -> set[int]:
    if layers == "all":
        return set(range(count))
    if isinstance(layers, str):
        end, number = layers.split(":")
        few = min(int(number), count)  # a strategy's default has to suit every model
        return set(range(few) if end == "first" else range(count - few, count))
    outside = sorted(i for i in layers if not 0 <= i < count)
    if outside:
        raise UserError(
            f"adapter.layers: block {outside[0]} does not exist; the model has blocks "
            f"0 to {count - 1}"
        )
    return set(layers)


def _nothing(what: str, candidates: Iterable[str]) -> UserError:
    endings = sorted({".".join(_without_numbers(name)) for name in candidates})
    return UserError(
        f"adapter.targets: {what} matches no linear module of this model in the chosen layers. "
        f'Give a list of endings such as ["{endings[0] if endings else ""}"]; candidates: '
        f"{', '.join(endings)}"
    )


def _without_numbers(name: str) -> list[str]:
    """The part of a dotted name behind its last number."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return parts[numbers[-1] + 1 :] if numbers else parts
