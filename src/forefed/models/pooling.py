"""How the tokens' last hidden states become the one vector that a class is read from.

A sentence encoder was trained to speak through one pooling, and its class in transformers may read
another: all-MiniLM means by the mean, while BERT's classifier reads a pooler that was never
trained for it. Measured by a linear probe the choice is worth five points and more (docs/LOG.md).
What enters the first and the middle block tells of words and syntax, and is worth three more
(``layers``).

``install`` puts a linear head on the chosen pooling of a classifier of transformers, in place: the
body keeps its names, so adapters are the same tensors, and whoever loads an exported adapter
installs the same again (``forefed.load``).

Axes: B examples, S positions, H hidden width, F features (H for each layer read), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from forefed.core.errors import UserError
from forefed.core.types import Json
from forefed.models.bag_of_words import Words, beginnings, tokens_of
from forefed.models.blocks import Blocks
from forefed.models.inspect import Facts
from forefed.models.settings import ModelSettings

Pooling = Literal["mean", "cls", "last", "pooler"]
"""Mean over the tokens; the first one; the last one; or the way of the class in transformers:
BERT's pooler, RoBERTa's dense layer, a decoder's last token without a bias."""

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


def choose(settings: ModelSettings, facts: Facts) -> Pooling:
    """What ``model.pooling`` means for this checkpoint.

    Raises:
        UserError: the checkpoint asks for a pooling that there is none of here, or the settings
            for one that sees nothing.
    """
    if settings.pooling == "cls" and facts.decoder:
        raise UserError(
            "model.pooling = 'cls': the first token of a decoder sees nothing of the text; set "
            "'last', 'mean' or 'auto'"
        )
    if settings.pooling != "auto":
        return settings.pooling
    if facts.head == "classification":
        return "pooler"
    if facts.pooling is not None:
        return _said(settings.name, facts.pooling)
    if facts.decoder:
        return "last"  # better than the mean on held-out rows (docs/RESULTS.md)
    native = getattr(facts.config, "classifier_pooling", None) is not None
    return "pooler" if native else "mean"


def _said(name: str, pooling: Json) -> Pooling:
    asked = {mode for mode, on in pooling.items() if mode.startswith("pooling_mode_") and on}
    if len(asked) != 1 or not asked <= _MODES.keys():
        others = ", ".join(sorted(mode.removeprefix("pooling_mode_") for mode in asked))
        raise UserError(
            f"model.pooling: '{name}' was trained with a pooling that is not known here "
            f"({others or 'none'}); set model.pooling to one of {', '.join(get_args(Pooling))}"
        )
    return _MODES[asked.pop()]


def install(
    model: Any, pooling: Pooling, classes: int, layers: Literal["last", "spread"] = "last"
) -> None:
    """Make a classifier of transformers read its class from this pooling, by one linear map.

    Modules of the head beside it, and a pooler of the body, are taken away: nobody reads them.

    Where the old head does not fit, ``new_head`` names the parameters that have no values yet.
    """
    model.pooling, model.layers, model.new_head = pooling, "last", ()
    if pooling == "pooler":
        return
    model.layers = layers
    body = model.base_model_prefix
    heads = [
        n for n, x in model.named_children() if n != body and any(True for _ in x.parameters())
    ]
    linear = [m for n in heads for m in getattr(model, n).modules() if isinstance(m, nn.Linear)]
    blocks = Blocks.find(model, tuple(heads)).names
    read = [blocks[i] for i in sorted({0, len(blocks) // 2})] if layers == "spread" else []
    name, width = heads[-1], linear[0].in_features * (1 + len(read))
    for other in heads[:-1]:
        delattr(model, other)
    old = getattr(model, name)
    if not (isinstance(old, nn.Linear) and old.in_features == width and old.bias is not None):
        with torch.random.fork_rng(devices=[]):  # its values are drawn by a key, later
            new = nn.Linear(width, classes, dtype=linear[0].weight.dtype)
        setattr(model, name, new.to(linear[0].weight.device))
        model.new_head = (f"{name}.weight", f"{name}.bias")
    if getattr(getattr(model, body), "pooler", None) is not None:
        getattr(model, body).pooler = None
    model.forward = PooledForward(model, pooling, name, [model.get_submodule(n) for n in read])


class PooledForward:
    """The forward pass of a model with a pooling installed. No module, as the model holds it.

    ``early``: blocks whose inputs are pooled, too, before the last hidden states.
    """

    def __init__(self, model: Any, pooling: Pooling, head: str, early: Sequence[nn.Module] = ()):
        self.model, self.pooling, self.head = model, pooling, head
        self.words: Words | None = None
        """Of an exported model: what texts' words add to the logits..."""
        self.cut: tuple[int | None, int | None] = (None, None)
        """... and how many tokens the body reads of texts that are longer, and what ends them."""
        self.entered: list[Tensor] | None = None
        for block in early:
            block.register_forward_pre_hook(self.enter, with_kwargs=True)

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps what enters an early block, once in a forward pass (blocks may run again later)."""
        if self.entered is not None:
            self.entered.append(args[0] if args else kwargs["hidden_states"])

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **more: Any,
    ) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        if token_type_ids is not None:
            more["token_type_ids"] = token_type_ids
        whole_BS, there_BS = input_ids, attention_mask
        reads, end = self.cut
        if reads is not None and input_ids is not None:
            input_ids, attention_mask = beginnings(input_ids, attention_mask, reads, end)
            more = {n: x[:, :reads] if n == "token_type_ids" else x for n, x in more.items()}
        body = getattr(self.model, self.model.base_model_prefix)
        self.entered = []
        try:
            last_BSH = body(input_ids, attention_mask=attention_mask, **more)[0]
            every = [*self.entered, last_BSH]
        finally:
            self.entered = None
        parts = [pool(hidden_BSH, attention_mask, self.pooling) for hidden_BSH in every]
        pooled_BF = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        logits_BC = getattr(self.model, self.head)(pooled_BF)
        if self.words is not None and whole_BS is not None:
            logits_BC = self.words.added(logits_BC, *tokens_of(whole_BS, there_BS))
        loss = None if labels is None else nn.functional.cross_entropy(logits_BC, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC)


def pool(hidden_BSH: Tensor, mask_BS: Tensor | None, pooling: Pooling) -> Tensor:
    """[B, H] in float32 or wider; padding (mask 0, on the right) has no part in it."""
    wide_BSH = hidden_BSH.to(torch.promote_types(hidden_BSH.dtype, torch.float32))
    if pooling == "cls":
        return wide_BSH[:, 0]
    if mask_BS is None:
        return wide_BSH.mean(1) if pooling == "mean" else wide_BSH[:, -1]
    there_BS1 = mask_BS[:, :, None].to(wide_BSH.dtype)
    if pooling == "last":
        there_BS1 = there_BS1 * (there_BS1.flip(1).cumsum(1).flip(1) == 1)
    return (wide_BSH * there_BS1).sum(1) / there_BS1.sum(1)
