"""FedKRSO: Yang et al., "FedKRSO: communication and memory efficient federated fine-tuning of large
language models" (arXiv 2602.03019): exact gradients inside random subspaces that all share. W moves
by B P with P [r, I] random and at rest, E[P^T P] = I; clients train and send B alone, and B P is
added to W. P is one of K, by its number, so that K seeds tell all of them.

Departures: one subspace a round (published: several, in turn, with an accumulator for each); over
the adapted matrices (published: all); the sum of all products so far is sent down in full.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.aggregate.factored import Factored, Held, New
from forefed.core.keys import Key
from forefed.core.lora import Factors
from forefed.core.types import ServerContext


class FedKrso(Factored):
    """B averaged and added to the matrix itself, inside one of K random subspaces a round."""

    kind: Literal["fedkrso"] = "fedkrso"
    seeds: Annotated[int, Field(ge=1)] = 16
    """K."""
    run: Annotated[int, Field(ge=0)] = 0
    """Draws the subspaces: the same ones in runs of any seed."""

    source: ClassVar[str] = "FedKRSO, arXiv 2602.03019"
    folds: ClassVar[bool] = True
    individual: ClassVar[bool] = False
    at_rest: ClassVar[bool] = True

    def product(self, held: Held, ctx: ServerContext) -> New:
        a_RI, b_OR = held.stacked()
        old_a, old_b = held.old
        return New((self.subspace(old_a, held.at, ctx), torch.zeros_like(old_b)), b_OR @ a_RI)

    def subspace(self, like: Tensor, at: Factors, ctx: ServerContext) -> Tensor:
        """P [r, I] of the next round: normal values of variance 1 / r."""
        number = int(ctx.key.fold("subspace").integers(1, below=self.seeds)[0])
        drawn = Key(self.run).fold("subspace", number, at.a).normal(tuple(like.shape))
        return (drawn * len(like) ** -0.5).to(like)
