"""A language model's loss in chunks of tokens, so that no batch's logits exist all at once.

With V words, the logits of T tokens are T x V numbers: for most language models by far the largest
tensor of a step, in every engine. But each token's loss needs its own logits only. So the body runs
alone, and what follows it is applied to a few tokens at a time.

What follows the body is the model's own code: its ``forward`` runs with the body replaced by a
function that hands over these hidden states. So a soft cap (Gemma 2), a scale (Cohere, Granite)
or a bias (Phi) needs no word here. ``find_tail`` checks on a few tokens that this gives the same
logits; where it does not, the loss is computed from the logits of the whole batch.

In reverse mode chunks are of words, for all tokens at once, and the gradient by the hidden states h
is computed together with the loss (nothing of what follows the body is trained): no logit is kept,
or computed twice. As in online softmax (Milakov and Gimelshein, arXiv 1805.02867), the sums of

    s = sum_v exp(z_v - m),   G = sum_v exp(z_v - m) dz_v / dh

are scaled down whenever a larger m is met; the loss is m + log s - z_y, its gradient G / s -
dz_y / dh. That takes a model whose logits are an output matrix and a function of each logit alone,
which is checked as well.

Axes: B examples, S positions, T predicted tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.nn.functional import cross_entropy

from forefed.data.examples import IGNORED_LABEL
from forefed.models.functional import replaced
from forefed.models.quantised import some_outputs, weights_of

CHUNK_BYTES = 16_000_000
"""Logits at work, all tangents together: small beside a block's activations at usual sizes, and
enough tokens (62 at 32,000 words with one tangent) to read the output matrix at full speed."""
FEWEST_TOKENS = 16
WORDS_BYTES = 3_000_000
"""Logits at work in reverse mode: of 730 words for 512 tokens."""
FEWEST_WORDS = 256


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
    head: Any = None
    """The output matrix; None: logits are not to be had for some words alone."""
    words: int | None = None
    """Per chunk in reverse mode; None: so many that their logits take ``WORDS_BYTES``."""

    def hidden(self, **inputs: Tensor) -> Tensor:
        """What the body hands over, [B, S, H]."""
        hidden_BSH: Tensor = self.body(**inputs)[0]
        return hidden_BSH

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """[T, V]."""
        return self._after(hidden_TH, {})[0]

    def logits_of(self, hidden_TH: Tensor, words: slice) -> Tensor:
        """[1, T, W] of some words."""
        return self._after(hidden_TH, {self.head: some_outputs(self.head, words)})

    def logit_each(self, hidden_TH: Tensor, words_T: Tensor) -> Tensor:
        """[1, T, 1]: for every token that of its own word."""

        def product(x_1TH: Tensor) -> Tensor:
            weight_TH, bias = weights_of(self.head, words_T)
            z_T11 = torch.bmm(x_1TH[0, :, None], weight_TH[:, :, None])
            return z_T11[None, :, 0] + (0 if bias is None else bias[:, None])

        return self._after(hidden_TH, {self.head: product})

    def _after(self, hidden_TH: Tensor, forwards: dict[Any, Any]) -> Tensor:
        def body(*_: Any, **__: Any) -> Any:
            return self.output(last_hidden_state=hidden_TH[None])

        with replaced({self.body: body, **forwards}):
            logits_1TV: Tensor = self.model().logits
        return logits_1TV

    def loss_sum(self, hidden_BSH: Tensor, labels_BS: Tensor) -> Tensor:
        """Summed cross-entropy in nats of the tokens after each position.

        Args:
            labels_BS: with ``IGNORED_LABEL`` where no loss is; those cost nothing.
        """
        row_T, position_T = (labels_BS[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
        where_T = row_T * labels_BS.shape[1] + position_T
        hidden_TH = hidden_BSH.flatten(0, 1)[where_T.to(hidden_BSH.device)]
        words_T = labels_BS[row_T, position_T + 1].to(hidden_BSH.device)
        in_reverse = type(hidden_TH) is Tensor and hidden_TH.requires_grad
        if in_reverse and torch.is_grad_enabled() and self.head is not None and len(words_T):
            found: Tensor = _WithGradient.apply(hidden_TH, words_T, self)
            return found
        chunk = self.tokens or self.tokens_at_once(hidden_TH)
        pairs = zip(hidden_TH.split(chunk), words_T.split(chunk), strict=True)
        total: Any = sum(self._of_chunk(hidden, words) for hidden, words in pairs)
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

    def with_gradient(self, hidden_TH: Tensor, words_T: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss, and its gradient by the hidden states [T, H] in float32 or wider."""
        low, wide = hidden_TH.dtype, torch.promote_types(hidden_TH.dtype, torch.float32)
        size = 2 * wide.itemsize * len(words_T)
        step = self.words or max(FEWEST_WORDS, WORDS_BYTES // size)
        largest_T1 = torch.full((len(words_T), 1), -torch.inf, dtype=wide, device=words_T.device)
        sum_T1, said_T1 = torch.zeros_like(largest_T1), torch.zeros_like(largest_T1)
        grad_TH = torch.zeros_like(hidden_TH, dtype=wide)
        leaf_TH = hidden_TH.detach().requires_grad_()
        for start in range(0, self.vocabulary, step):
            words = slice(start, min(start + step, self.vocabulary))
            with torch.enable_grad():
                z_1TW = self.logits_of(leaf_TH, words)
            edge = get_gradient_edge(z_1TW)
            z_TW = z_1TW.detach()[0].to(wide, copy=True)
            del z_1TW  # what is left of it is the way back
            at_T1 = words_T[:, None] - start
            here_T1 = (at_T1 >= 0) & (at_T1 < z_TW.shape[1])
            said = z_TW.gather(1, at_T1.clamp(0, z_TW.shape[1] - 1))
            said_T1 = torch.where(here_T1, said, said_T1)
            new_T1 = torch.maximum(largest_T1, z_TW.amax(1, keepdim=True))
            shrunk_T1 = (largest_T1 - new_T1).exp_()
            largest_T1 = new_T1
            z_TW.sub_(new_T1).exp_()
            sum_T1 = sum_T1 * shrunk_T1 + z_TW.sum(1, keepdim=True)
            (found,) = torch.autograd.grad(edge, leaf_TH, z_TW.to(low)[None])
            grad_TH.mul_(shrunk_T1).add_(found)
        with torch.enable_grad():
            own_1T1 = self.logit_each(leaf_TH, words_T)
        (found,) = torch.autograd.grad(own_1T1, leaf_TH, torch.ones_like(own_1T1))
        return (sum_T1.log() + largest_T1 - said_T1).sum(), grad_TH.div_(sum_T1).sub_(found)


class _WithGradient(torch.autograd.Function):
    """``Tail.loss_sum`` of chosen hidden states, whose gradient is there before it is asked for."""

    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, words_T: Tensor, tail: Tail) -> Tensor:
        loss, grad_TH = tail.with_gradient(hidden_TH, words_T)
        ctx.save_for_backward(grad_TH)
        ctx.dtype = hidden_TH.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_TH,) = ctx.saved_tensors
        return (grad_TH * grad).to(ctx.dtype), None, None


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
                    with_head = replace(tail, head=model.get_output_embeddings())
                    return with_head if _agrees_by_words(with_head, inputs, expected_SV) else tail
    return None


def _agrees(tail: Tail, inputs: dict[str, Tensor], expected_SV: Tensor) -> bool:
    try:
        found_SV = tail.logits(tail.hidden(**inputs)[0])
    except (TypeError, ValueError, AttributeError, KeyError):
        return False  # the model's forward wants more than hidden states
    return _near(found_SV, expected_SV)


def _agrees_by_words(tail: Tail, inputs: dict[str, Tensor], expected_SV: Tensor) -> bool:
    hidden_SH, half = tail.hidden(**inputs)[0], tail.vocabulary // 2
    words_S = torch.arange(half, half + len(hidden_SH), device=hidden_SH.device)
    try:
        pieces = [
            tail.logits_of(hidden_SH, slice(*ends)) for ends in ((0, half), (half, tail.vocabulary))
        ]
        own_1S1 = tail.logit_each(hidden_SH, words_S)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return False  # what follows the output matrix wants all words
    expected_S1 = expected_SV.gather(1, words_S[:, None])
    return _near(torch.cat(pieces, -1)[0], expected_SV) and _near(own_1S1[0], expected_S1)


def _near(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), *_tolerance(expected)
    )


def _tolerance(x: Tensor) -> tuple[float, float]:
    """Relative and absolute, of two roundings of the same sum."""
    eps = torch.finfo(x.dtype).eps
    return 8 * eps, 8 * eps * float(x.abs().max())
