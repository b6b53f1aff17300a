"""Lies in answers to questions: held-out losses and counts (of the guard's and the start's), and
words' sums. An adversary that is believed there chooses the step, the head and what words say.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from forefed.core.types import Params

Lies = Literal["honest", "reversed", "drowned"]
LOUD = 1e3


def lied(kind: str, answer: Params, how: Lies, claims: float) -> Params:
    """What a hostile client says in the place of this answer, as it travels.

    reversed: what is best is said to be worst (losses and counts are reflected, words' sums stand
    at the next target), within what rows could say.
    drowned: the same, with losses that outweigh everybody's.

    Args:
        claims: so many times its rows it claims to have.
    """
    if how == "honest":
        return answer
    if kind in ("words", "products"):
        return {**answer, f"{kind}/values": _turned(answer, kind)}
    if "n" not in answer or kind == "documents":
        return answer
    made = {"n": answer["n"] * claims}
    for name, x in answer.items():
        if name == "n":
            continue
        told = x if name == "apart" or not x.numel() else x.max() + x.min() - x
        made[name] = claims * told * (LOUD if how == "drowned" and name in ("loss", "flat") else 1)
    return made


def _turned(answer: Params, kind: str) -> Tensor:
    """Words' sums by target, each at the next one's place."""
    at, values = answer[f"{kind}/at"], answer[f"{kind}/values"]
    if not len(at):
        return values
    by_target = values.reshape(len(at), -1, values.shape[1])
    last = by_target.shape[1] - (kind == "words")  # the words' own sums stay
    turned = torch.cat([by_target[:, :last].roll(1, 1), by_target[:, last:]], 1)
    return turned.reshape(values.shape).contiguous()
