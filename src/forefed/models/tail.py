"""A language model's loss in chunks of tokens, so that no batch's logits exist all at once.

With V words, the logits of T tokens are T x V numbers: for most language models by far the largest
tensor of a step, in every engine. But each token's loss needs its own logits only. So the body runs
alone, and what follows it is applied to a few tokens at a time.

What follows the body is the model's own code: its ``forward`` runs with the body replaced by a
function that hands over these hidden states. So a soft cap (Gemma 2), a scale (Cohere, Granite)
or a bias (Phi) needs no word here. ``find_tail`` checks on a few tokens that this gives the same
logits; where it does not, the loss is computed from the logits of the whole batch.

Axes: B examples, S positions, T predicted tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from forefed.data.examples import IGNORED_LABEL
from forefed.models.functional import replaced

CHUNK_BYTES = 16_000_000
"""Logits at work, all tangents together: small beside a block's activations at usual sizes, and
enough tokens (62 at 32,000 words with one tangent) to read the output matrix at full speed."""
FEWEST_TOKENS = 16

Wrap = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


@dataclass(frozen=True)
class Tail:
    """What a language model does after its body, whose outputs are ``output`` objects.

    ``tokens`` per chunk; None: so many that their logits take ``CHUNK_BYTES``.
    """

    model: Any
    body: Any
    output: Any
    vocabulary: int
    tokens: int | None = None

    def hidden(self, **inputs: Tensor) -> Tensor:
        """What the body hands over, [B, S, H]."""
        hidden_BSH: Tensor = self.body(**inputs)[0]
        return hidden_BSH

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """[T, V]."""

        def body(*_: Any, **__: Any) -> Any:
            return self.output(last_hidden_state=hidden_TH[None])

        with replaced({self.body: body}):
            logits_1TV: Tensor = self.model().logits
        return logits_1TV[0]

    def loss_sum(self, hidden_BSH: Tensor, labels_BS: Tensor, wrap: Wrap = lambda f: f) -> Tensor:
        """Summed cross-entropy in nats of the tokens after each position.

        Args:
            labels_BS: with ``IGNORED_LABEL`` where no loss is; those cost nothing.
            wrap: applied to the function of one chunk (recomputation in the backward pass).
        """
        row_T, position_T = (labels_BS[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
        where_T = row_T * labels_BS.shape[1] + position_T
        hidden_TH = hidden_BSH.flatten(0, 1)[where_T.to(hidden_BSH.device)]
        words_T = labels_BS[row_T, position_T + 1].to(hidden_BSH.device)
        chunk = self.tokens or self.tokens_at_once(hidden_BSH)
        of_chunk = wrap(self._of_chunk)
        pairs = zip(hidden_TH.split(chunk), words_T.split(chunk), strict=True)
        total: Any = sum(of_chunk(hidden, words) for hidden, words in pairs)
        return total

    def tokens_at_once(self, hidden: Tensor) -> int:
        """Tokens whose logits, in float32 or wider, take ``CHUNK_BYTES``."""
        # A dual tensor holds its value and tangents in ``slices``; torch's own do not tell, and
        # reverse mode holds the gradient beside the value.
        copies = len(getattr(hidden, "slices", (0, 0)))
        width = torch.promote_types(hidden.dtype, torch.float32).itemsize
        return max(FEWEST_TOKENS, CHUNK_BYTES // (copies * width * self.vocabulary))

    def _of_chunk(self, hidden_TH: Tensor, words_T: Tensor) -> Tensor:
        logits_TV = self.logits(hidden_TH)
        wide_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
        return cross_entropy(wide_TV, words_T, reduction="sum")


def find_tail(model: Any) -> Tail | None:
    """The tail of a Hugging Face language model in eval mode; None if it cannot be told apart."""
    if model.get_output_embeddings() is None:
        return None
    vocabulary = model.config.get_text_config().vocab_size
    ids_BS = torch.arange(3, 7, device=next(model.parameters()).device)[None] % vocabulary
    inputs = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
    with torch.no_grad():
        expected_SV = model(**inputs).logits[0]
        for body in (model.base_model, model.get_decoder()):  # OPT calls the inner one
            if body is not model and body is not None:
                output = type(body(**inputs))
                tail = Tail(model, body, output, expected_SV.shape[-1])
                if _agrees(tail, inputs, expected_SV):
                    return tail
    return None


def _agrees(tail: Tail, inputs: dict[str, Tensor], expected_SV: Tensor) -> bool:
    try:
        found_SV = tail.logits(tail.hidden(**inputs)[0])
    except (TypeError, ValueError, AttributeError, KeyError):
        return False  # the model's forward wants more than hidden states
    return found_SV.shape == expected_SV.shape and torch.allclose(
        found_SV.double(), expected_SV.double(), *_tolerance(expected_SV)
    )


def _tolerance(x: Tensor) -> tuple[float, float]:
    """Relative and absolute, of two roundings of the same sum."""
    eps = torch.finfo(x.dtype).eps
    return 8 * eps, 8 * eps * float(x.abs().max())
