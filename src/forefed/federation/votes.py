"""Answers of which some may be lies: sums over held-out rows by a trimmed mean.

An answer to a question about held-out rows is a sum over a client's rows, and whoever lies can say
any number: one loss of a billion decides for all. Where clients may lie (``guard.f``) and single
answers are seen, the total is made of what they say of a row. (With ``start.f`` answers about the
start's heads are checked and capped alike, and ``trim`` is 0: trimmed ones chose worse heads.)

    x_c / n_c            of each client c, element by element; of losses and of rows that are right
                         the first element, and the others' differences from that (they are about
                         the same rows: whose rows are hard does not show in them)
    trimmed mean         over the clients, weighted by min(n_c, 3 medians): without the ``trim``
                         largest and the ``trim`` smallest of each

times the rows that count. An answer that no rows give is refused before (``check``). Source: the
coordinate-wise trimmed mean of Yin et al. (ICML 2018), on differences; ours.

Axes: A clients that answered, E elements of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from forefed.aggregate.vectors import capped
from forefed.channel.graph import at_least
from forefed.core.errors import ProtocolError
from forefed.core.types import Params

UNLIKELY = 0.01
"""Chance that more of the clients that are asked lie than are trimmed at either end."""
COUNTS = ("right", "correct", "apart")
"""Of an answer's tensors, those that count rows: at most ``n`` each."""
COMPARED = ("loss", "flat", "right", "correct", "apart")
"""Those whose elements are about the same rows."""


@cache
def trimmed_of(population: int, hostile: int, drawn: int) -> int:
    """How many answers are left out at either end: at most so many of the ``drawn`` lie, but with a
    chance of ``UNLIKELY``, where ``hostile`` of the population do. Below a half of them."""
    hostile = min(hostile, population)
    most = max(0, (drawn - 1) // 2)
    for trim in range(most):
        if at_least(trim + 1, population, hostile, min(drawn, population)) <= UNLIKELY:
            return trim
    return most


def check(answer: Mapping[str, Tensor]) -> None:
    """Raises ProtocolError: losses or counts that no rows have."""
    n = float(answer["n"])
    losses = [x for name, x in answer.items() if name in ("loss", "flat")]
    if not 0 <= n < 2**53 or any(bool((x < 0).any()) for x in losses):
        raise ProtocolError("losses that no rows have")
    for name in COUNTS:
        x = answer.get(name)
        if x is not None and not bool(((x >= 0) & (x <= n)).all()):
            raise ProtocolError(f"'{name}' counts more rows than there are")


def trimmed_total(answers: Sequence[Mapping[str, Tensor]], trim: int) -> Params:
    """What these answers say together, float64, in the form of their sum.

    Args:
        answers: each with ``n``, its rows.
    """
    some = [answer for answer in answers if float(answer["n"]) > 0]
    if not some:
        return {name: x.double() for name, x in answers[0].items()}
    trim = min(trim, (len(some) - 1) // 2)
    n_A = torch.stack([answer["n"].double().reshape(()) for answer in some])
    weight_A = capped(n_A) if len(some) > 2 else n_A
    rows = weight_A.sum()
    total: Params = {"n": rows.reshape(some[0]["n"].shape)}
    for name, like in some[0].items():
        if name == "n":
            continue
        each_AE = torch.stack([answer[name].double().flatten() for answer in some])
        each_AE = (each_AE / n_A[:, None]).nan_to_num(torch.inf, torch.inf, -torch.inf)
        if name in COMPARED:
            first_A1 = each_AE[:, :1]
            each_AE = torch.cat([first_A1, each_AE[:, 1:] - first_A1], 1).nan_to_num(torch.inf)
        middle_E = trimmed_mean(each_AE, weight_A, trim)
        if name in COMPARED:
            middle_E = torch.cat([middle_E[:1], middle_E[1:] + middle_E[0]])
        total[name] = (rows * middle_E).reshape(like.shape)
    return total


def trimmed_mean(x_AE: Tensor, weight_A: Tensor, trim: int) -> Tensor:
    """Weighted mean of every column without its ``trim`` largest and smallest, [E]."""
    order = x_AE.argsort(dim=0)[trim : len(x_AE) - trim]
    kept, weights = x_AE.gather(0, order), weight_A[order]
    return (kept * weights).sum(0) / weights.sum(0)
