"""What a language model says after a prompt: greedy, several prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from forefed.core.errors import UserError
from forefed.core.types import Params
from forefed.models.functional import Call
from forefed.models.inspect import longest_text

if TYPE_CHECKING:
    from forefed.models.task import Logits


def continuations(
    logits: Logits,
    params: Params,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    ends: Sequence[int],
    pad: int,
) -> list[list[int]]:
    """The tokens after every prompt, without the one that ends them.

    The likeliest token is taken each time (transformers' ``generate`` with its cache of keys and
    values); what a model's own generation_config.json says of sampling and penalties is left aside.
    Each ends at a token of ``ends``, after ``tokens``, or where the model has no position left.
    Prompts of different lengths are padded on the left, which changes sums in their last bits.

    Args:
        params: all trainable tensors.
        prompts: by text, one token or more each, with room for one more.
        pad: the tokeniser's padding token.
    """
    if not prompts:
        return []
    from transformers import GenerationConfig

    longest, limit = max(map(len, prompts)), longest_text(logits.model.config)
    room = tokens if limit is None else min(tokens, limit - longest)
    if room < tokens and len(prompts) > 1:  # a short prompt has more room than its neighbour
        alone = (continuations(logits, params, [p], tokens, ends, pad) for p in prompts)
        return [ids for (ids,) in alone]
    ids_BS = torch.full((len(prompts), longest), pad)
    mask_BS = torch.zeros_like(ids_BS)
    for b, prompt in enumerate(prompts):
        ids_BS[b, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BS[b, longest - len(prompt) :] = 1
    how = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=room,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    call = Call({name: x.to(logits.device) for name, x in params.items()})
    with torch.no_grad():
        found_BT: Any = logits.functional.run(
            call,
            logits.model.get_base_model().generate,
            input_ids=ids_BS.to(logits.device),
            attention_mask=mask_BS.to(logits.device),
            generation_config=how,
        )
    said = []
    for row in found_BT[:, longest:].tolist():
        stop = next((t for t, token in enumerate(row) if token in ends), len(row))
        said.append(row[:stop])
    return said


def check_room(prompt: Sequence[int], text: str, config: Any) -> None:
    """Raises UserError: a prompt without a token, or one that leaves no position for an answer."""
    limit = longest_text(config)
    if not prompt:
        raise UserError(f"predict: the prompt {text[:40]!r} has no token; give some text")
    if limit is not None and len(prompt) >= limit:
        raise UserError(
            f"predict: the prompt {text[:40]!r}... has {len(prompt)} tokens, and the model has "
            f"positions for {limit} with the answer; shorten it"
        )
