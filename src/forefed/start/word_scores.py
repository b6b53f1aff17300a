"""Which words are kept, and what each says of a class: ridge regression from clients' sums.

Source: ridge regression as Fed3R has it (arXiv 2406.01116), on TF-IDF vectors; the matrix of their
products is far too large to send, so the server solves by conjugate gradients (Hestenes and
Stiefel, 1952), of which a step needs one sum over all rows, X^T X p. A few steps are enough, and
stopping early regularises (docs/LOG.md). Sums are whole numbers, so the result does not depend on
who holds which row. Departure: p is rounded to 16 bits, and the server goes on with what it has
sent.

Axes: N rows, E entries of rows, F words, C targets (``start.targets``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forefed.core.errors import ProtocolError
from forefed.core.types import Params
from forefed.models.bag_of_words import BUCKETS, STEP, Bag
from forefed.start.sums import pack, unpack
from forefed.start.targets import Targets

ANSWER_STEP = 2.0**-14
"""Units of a row's product with p, whose numbers are at most 1."""
DAMPING = 1.0
"""Added to the diagonal of X^T X, where every row has length 1."""
STEPS = 6
Entries = tuple[Tensor, Tensor, Tensor]
"""Row, word and value (whole units of ``STEP``) of every entry, rows ascending."""


def kept(documents: Tensor, rows: int, most: int) -> Bag:
    """The ``most`` most frequent words that two rows or more have.

    Args:
        documents: by bucket, in how many rows it is [BUCKETS].
        rows: all there are.
    """
    order = torch.argsort(-documents, stable=True)[:most]
    buckets = order[documents[order] >= 2].sort().values
    idf = ((1 + rows) / (1 + documents[buckets].double())).log() + 1
    return Bag(buckets.int(), idf.float())


def by_target(entries: Entries, y_NC: Tensor, words: int) -> Tensor:
    """Summed values by word times targets, and last the sums themselves: [F, C + 1] int64, in units
    of STEP and of the targets, which are whole numbers."""
    row_E, slot_E, value_E = entries
    y_ND = torch.cat([y_NC.double(), torch.ones(len(y_NC), 1, dtype=torch.float64)], 1)
    at, size = torch.stack([slot_E, row_E]), (words, len(y_NC))
    x_FN = torch.sparse_coo_tensor(at, value_E.double(), size, check_invariants=False)
    return torch.sparse.mm(x_FN, y_ND).round().long()  # exact: whole numbers below 2^53


def products(entries: Entries, rows: int, p_FC: Tensor) -> Tensor:
    """X^T (X p) of these rows, [F, C] int64, in units of STEP and ANSWER_STEP."""
    row_E, slot_E, value_E = entries
    p_FC = p_FC.double()
    along = torch.zeros(rows, p_FC.shape[1], dtype=torch.float64)
    along.index_add_(0, row_E, (STEP * value_E.double())[:, None] * p_FC[slot_E])
    units = (along / ANSWER_STEP).round().long()
    total = torch.zeros(p_FC.shape, dtype=torch.int64)
    return total.index_add_(0, slot_E, value_E[:, None] * units[row_E])


def check_words(sums_FD: Tensor, rows: int, targets: Targets) -> None:
    """Can so many rows have these sums of ``by_target``? A row's vector has length 1, so that of a
    sum is at most the number of rows; and what falls on a target lies within what falls on all.

    Raises:
        ProtocolError: no.
    """
    by_target_FC, whole_F = sums_FD[:, :-1].double(), sums_FD[:, -1].double()
    most_F = whole_F * (1.0 if targets.named else targets.length / targets.unit)
    least_F = torch.zeros_like(most_F) if targets.named else -most_F
    inside = (by_target_FC >= least_F[:, None]) & (by_target_FC <= most_F[:, None])
    if not bool(inside.all()) or float(whole_F.norm()) > _longest(rows, whole_F):
        raise ProtocolError("sums of words that no rows have")


def check_products(products_FC: Tensor, p_FC: Tensor, rows: int) -> None:
    """Can so many rows have these products with p? X^T X p goes with p, and of rows of length 1 it
    is at most rows times as long.

    Raises:
        ProtocolError: no.
    """
    p_FC, image_FC = p_FC.double(), products_FC.double() * ANSWER_STEP
    room = _longest(rows, image_FC)
    lengths_C = p_FC.norm(dim=0)
    along_C = (p_FC * image_FC).sum(0)
    if bool((image_FC.norm(dim=0) > room * (lengths_C + 1)).any()):
        raise ProtocolError("products of words longer than those of any rows")
    if bool((along_C < -room * ANSWER_STEP * (lengths_C + 1)).any()):
        raise ProtocolError("products of words against what was asked")


def _longest(rows: int, like: Tensor) -> float:
    """In units of STEP: of a sum of so many vectors of length 1, each of which is rounded."""
    return rows * (1 / STEP + 0.5 * float(len(like)) ** 0.5)


@dataclass(frozen=True)
class Descent:
    """Conjugate gradients for the words of some rows, before a step; all [F, C] float64.

    Attributes:
        weight: what words say so far.
        rest: what is left of the equations.
        p: the direction of the next step.
    """

    weight: Tensor
    rest: Tensor
    p: Tensor

    @staticmethod
    def of(sums_FD: Tensor, mean_C: Tensor, unit: float) -> Descent:
        """
        Args:
            sums_FD: of ``by_target``.
            mean_C: of the rows' targets (shares of the classes), in ``unit``, the targets' own.
        """
        sums_FD = sums_FD.double() * STEP
        rest = unit * (sums_FD[:, :-1] - mean_C.double() * sums_FD[:, -1:])
        return Descent(torch.zeros_like(rest), rest, rest)

    @property
    def scale(self) -> Tensor:
        return self.p.abs().amax(0).clamp_min(1e-30)

    @property
    def sent(self) -> Tensor:
        """The direction as it travels, [F, C] float16."""
        return (self.p / self.scale).half()

    def after(self, answer: Tensor) -> Descent:
        """``answer``: the sum of ``products`` of what was sent, over these rows."""
        p = self.sent.double() * self.scale
        image = answer.double() * (STEP * ANSWER_STEP) * self.scale + DAMPING * p
        curved = (p * image).sum(0).clamp_min(1e-30)
        step = (p * self.rest).sum(0) / curved
        weight, rest = self.weight + step * p, self.rest - step * image
        before, now = (self.rest * self.rest).sum(0), (rest * rest).sum(0)
        return Descent(weight, rest, rest + now / before.clamp_min(1e-30) * p)


def solved(
    descents: Sequence[Descent], ask: Callable[[Sequence[Tensor]], Sequence[Tensor] | None]
) -> list[Tensor]:
    """Ridge weights [F, C] of words for centred targets, float64, after STEPS steps.

    Args:
        descents: one for each set of rows; they step together, so that they ask as often as one.
        ask: from what each sends to the answer for each; None ends it where it is (somebody was
            missing).
    """
    for _ in range(STEPS):
        answers = ask([d.sent for d in descents])
        if answers is None:
            break
        descents = [d.after(answer) for d, answer in zip(descents, answers, strict=True)]
    return [d.weight for d in descents]


def sparse(x_FC: Tensor, name: str) -> Params:
    """As it travels: the rows that are not 0, each number in as few bytes as the largest takes."""
    at = x_FC.any(1).nonzero()[:, 0]
    return {f"{name}/at": at.int(), f"{name}/values": pack(x_FC[at])}


def whole(tensors: Params, name: str, rows: int, columns: int) -> Tensor:
    """The inverse of ``sparse``, for whatever came.

    Raises:
        ProtocolError: other sizes, or places that there are not.
    """
    at, values = tensors.get(f"{name}/at"), tensors.get(f"{name}/values")
    if at is None or values is None or at.dtype != torch.int32 or at.dim() != 1:
        raise ProtocolError(f"no sums '{name}' of words came")
    places = at.long()
    rising = bool((places[1:] > places[:-1]).all())
    if len(places) and not (rising and int(places[0]) >= 0 and int(places[-1]) < rows):
        raise ProtocolError(f"the sums '{name}' are of words that there are not")
    total = torch.zeros(rows, columns, dtype=torch.int64)
    total[places] = unpack(values, total[places], name)
    return total


def documents_of(row_E: Tensor, bucket_E: Tensor) -> Tensor:
    """In how many rows each bucket is, [BUCKETS, 1], of ``occurrences``."""
    del row_E  # every row names a bucket once
    return bucket_E.bincount(minlength=BUCKETS)[:, None]
