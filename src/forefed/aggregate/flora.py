"""FLoRA: Wang et al., "FLoRA: federated fine-tuning large language models with heterogeneous
low-rank adaptations" (NeurIPS 2024, arXiv 2409.05976): the clients' factors are stacked,
[B_1 ... B_n] [p_1 A_1; ...; p_n A_n] = sum_i p_i B_i A_i, and the product is added to the matrix
itself. A is drawn anew and B is 0 in every round.

Departures: the sum of all products so far is sent down in full (published: the stack, for each to
add up), as a client may have missed any number of rounds. The head is averaged as ever.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from forefed.aggregate.factored import Factored, Held, New
from forefed.core.lora import Factors
from forefed.core.types import ServerContext


class Flora(Factored):
    """The stacked product goes into the matrix itself, and the factors begin anew. Exact."""

    kind: Literal["flora"] = "flora"
    source: ClassVar[str] = "FLoRA, arXiv 2409.05976"
    folds: ClassVar[bool] = True
    any_rank: ClassVar[bool] = True

    def product(self, held: Held, ctx: ServerContext) -> New:
        a_RI, b_OR = held.stacked()
        old_a, old_b = held.old
        return New((drawn_a(old_a, held.at, ctx), torch.zeros_like(old_b)), b_OR @ a_RI)


def drawn_a(like: Tensor, at: Factors, ctx: ServerContext) -> Tensor:
    """A first value of A [r, I]: uniform in +-1 / sqrt(I), from the round's key."""
    drawn: Tensor = 2 * ctx.key.fold("factor", at.a).uniform(tuple(like.shape)) - 1
    return (drawn * like.shape[1] ** -0.5).to(like)
