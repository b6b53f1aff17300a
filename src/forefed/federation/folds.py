"""Cross-fitting: clients train against a head that has not seen their rows.

Source: the sample splitting of Chernozhukov et al., "Double/debiased machine learning" (arXiv
1608.00060), over clients.

A head that was solved from all training rows knows the rows that adapters are then trained on:
their loss is far below that of others, and so is the gradient. So clients fall into groups, and
those of group k are sent the head, and what words say, that were solved from the rows of all other
groups. Only what clients train against is exchanged: the parameters of the state, by which steps
are judged and models tested, have the head of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forefed.core.keys import Key
from forefed.core.states import State, below
from forefed.core.types import Params
from forefed.models.bag_of_words import WORDS

FOLDS = "folds"
"""Owner of the groups, their heads and words in a run's state."""
Groups = Sequence[Sequence[int]]


def groups_of(members: Sequence[int], count: int, key: Key) -> Groups:
    """Clients in ``count`` groups (no more than there are clients) whose sizes differ by one at
    most: by the key, whatever the order of ``members``."""
    ordered = sorted(members)
    count = max(1, min(count, len(ordered)))
    shuffled = [ordered[i] for i in key.fold(FOLDS).permutation(len(ordered))]
    return [sorted(shuffled[k::count]) for k in range(count)]


def sets_of(groups: int) -> list[list[int]]:
    """The groups whose rows a head is solved from: all, and where there are several, for each group
    the others."""
    everybody = [*range(groups)]
    others = [[j for j in everybody if j != k] for k in everybody]
    return [everybody, *(others if groups > 1 else [])]


@dataclass(frozen=True)
class Folds:
    """What the clients of each group train against.

    Attributes:
        group: of every client, [largest client + 1] int16; -1: in none.
        heads: parameters of the head, by group.
        words: what words say [F, C], by group, in the place of what they say to all; none: no words
            count.
        rate: times the clients' learning rates.
    """

    group: Tensor
    heads: Sequence[Params]
    words: Sequence[Tensor] = ()
    rate: float = 1.0

    @staticmethod
    def of(
        groups: Groups, heads: Sequence[Params], words: Sequence[Tensor], rate: float = 1.0
    ) -> Folds:
        group = torch.full((1 + max(c for some in groups for c in some),), -1, dtype=torch.int16)
        for k, some in enumerate(groups):
            group[torch.tensor(some)] = k
        return Folds(group, heads, words, rate)

    def packed(self) -> State:
        """As a state keeps it; inverse: ``kept``."""
        tensors = {f"{k}/head/{n}": x for k, head in enumerate(self.heads) for n, x in head.items()}
        tensors |= {f"{k}/words": x for k, x in enumerate(self.words)}
        rate = torch.tensor(self.rate, dtype=torch.float64)
        return {"group": self.group, "rate": rate, **tensors}

    @staticmethod
    def kept(state: State) -> Folds | None:
        """Of a run's state; None: everybody trains against the head of all."""
        if not state:
            return None
        count = 1 + int(state["group"].max())
        heads = [below(state, f"{k}/head") for k in range(count)]
        words = [state[f"{k}/words"] for k in range(count) if f"{k}/words" in state]
        return Folds(state["group"], heads, words, float(state["rate"]))

    def group_of(self, client: int) -> int:
        """-1: it was not there when heads were solved, so that of all has not seen its rows
        either."""
        return int(self.group[client]) if client < len(self.group) else -1

    def given(self, k: int, params: Params, told: Params) -> tuple[Params, Params]:
        """Parameters and broadcast as group ``k`` is sent them."""
        if k < 0:
            return params, told
        if self.words:
            told = {**told, f"{WORDS}/weight": self.words[k]}
        return {**params, **{n: x for n, x in self.heads[k].items() if n in params}}, told
