"""The classification head in one round, solved from sums that clients send.

Source: Fed3R (Fani et al., arXiv 2406.01116) for ridge regression; Gaussian discriminants from the
same sums as GH-OFL (ICLR 2026) has them. Departures: features are standardised by the same sums;
the kind of head, its regularisation and its temperature are chosen by the clients' held-out rows
(they try all candidates in one pass and send sums of losses).

Exact for any partition: sums do not see who holds what. Forward passes only.

Axes: D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from forefed.core.errors import UserError
from forefed.start.private import troubles
from forefed.start.start import Start
from forefed.start.sums import Sums

REGULARISATIONS = {
    "discriminant": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "ridge": (0.03, 0.3),
}
"""Candidates by solver, as shares of the features' mean variance."""
SCALES = tuple(2.0**k for k in range(-8, 7))
"""Candidates by which logits are multiplied (inverse temperatures)."""
SHARES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Candidates by which the words' logits are multiplied before they are added."""
WORDS = 16_384
"""That are kept by default."""
RIDGE = 8.0
"""Logits of a ridge head, which are near 0 and 1, are multiplied by it before that."""
TOLERANCE = 0.25
"""Standard errors of the held-out accuracy within which a more regularised head is taken."""
KINDS: tuple[Literal["discriminant", "ridge"], ...] = ("discriminant", "ridge")


class ClosedForm(Start):
    """The head by ridge regression or discriminant from the clients' sums, in one exact round."""

    kind: Literal["closed_form"] = "closed_form"
    solver: Literal["auto", "ridge", "discriminant"] = "auto"
    """``auto``: what the clients' held-out rows prefer."""
    regularisation: Annotated[float, Field(gt=0)] | Literal["held_out"] = "held_out"
    """A share of the features' mean variance; "held_out": what the held-out rows prefer."""
    prior: Literal["counts", "uniform"] = "counts"
    """Of the classes: as frequent as in the training rows, or equal (for balanced accuracy)."""
    then: Literal["frozen", "trained"] = "frozen"
    """The head in the rounds that follow."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Rows of one forward pass. 1: a row's features are the same bits whoever holds it, so the head
    is, too; more is faster on an accelerator, and rounding then depends on the partition."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """A client leaves out its rows of a class of which it has fewer: a sum of one is the row."""
    words: Annotated[int, Field(ge=0, le=30_000)] | Literal["auto"] = "auto"
    """Words and pairs of neighbours whose presence counts beside the features, most frequent first
    (0: none). Solved by ridge regression in six passes of sums over rows, without the model. For
    one text a row (``data.task.kind = "classification"``), as long as ``words_length``. Sums of one
    site tell which words its texts have, so "auto" is 16,384, and between machines 0 unless
    ``channel.kind = "secure_sum"``."""
    words_length: Annotated[int, Field(ge=4)] = 512
    """Tokens of a text that are looked at for words; the model reads ``data.max_length``."""
    again: bool = True
    """Solve once more at the end, from all rows, where no adapter has moved: the rows that were
    held out to choose by have then nothing left to judge."""

    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    """With noise on the sums (start/private.py): its standard deviation over what one unit adds."""
    target_epsilon: Annotated[float, Field(gt=0)] | None = None
    """In its place: what these sums may cost."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    unit: Literal["example", "client"] = "example"
    """What the noise hides."""
    radius: Annotated[float, Field(gt=0)] | None = None
    """With noise: longer features are cut to this length. About their usual one on public texts."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """With noise that hides clients: of each so many rows count at most."""

    @property
    def private(self) -> bool:
        return bool(self.noise_multiplier) or self.target_epsilon is not None

    def conflicts(self, config: Any) -> Iterator[str]:
        if self.private:
            yield from (f"start: {trouble}" for trouble in troubles(self, config))
        if config.data.task.head != "classification":
            yield (
                "start.kind = 'closed_form': spans and next tokens have no head in closed form; "
                "set start.kind = 'none'"
            )
        yield from _conflicts(self, config)

    def candidates(self) -> list[tuple[Literal["discriminant", "ridge"], float]]:
        """What is tried, in order of preference among equals."""
        kinds = KINDS if self.solver == "auto" else (self.solver,)
        fixed = self.regularisation
        return [
            (kind, share)
            for kind in kinds
            for share in (REGULARISATIONS[kind] if fixed == "held_out" else (fixed,))
        ]


class Auto(ClosedForm):
    """closed_form where classes are read from pooled tokens by one linear map, none elsewhere."""

    kind: Literal["auto"] = "auto"  # type: ignore[assignment]

    def conflicts(self, config: Any) -> Iterator[str]:
        if self.private:
            yield from (f"start: {trouble}" for trouble in troubles(self, config))


def start_of(config: Any, pooling: str) -> ClosedForm | None:
    """How a configuration's head is solved; None: it begins as the model has it.

    Args:
        config: the whole configuration.
        pooling: of the model (``models/pooling.py``); "pooler" is the way of its own class.
    """
    start = config.start
    if not isinstance(start, Auto):
        return start if isinstance(start, ClosedForm) else None
    classes = config.data.task.head == "classification" and pooling != "pooler"
    if not classes or config.download.by_sums or config.sharing.keeps_trained:
        return None
    if not config.topology.central:
        return None
    if any(m.private for m in config.modifiers) and not start.private:
        return None  # sums without noise would be a release that nobody accounts for
    alone = config.adapter.kind == "head"
    return start.model_copy(update={"then": "trained"}) if alone else start


def words_of(config: Any, pooling: str) -> int:
    """How many words count beside the features of a configuration's head; 0: none."""
    start = start_of(config, pooling)
    if start is None or start.private or config.data.task.kind != "classification":
        return 0
    if start.words != "auto":
        return start.words
    seen = config.partition.kind == "sites" and not config.channel.sums
    return 0 if seen else WORDS


def _conflicts(start: ClosedForm, config: Any) -> Iterator[str]:
    if config.download.by_sums:
        yield (
            "start: with download.kind = 'pool' clients begin at the seed's own values, so no head "
            "can be solved before; set start.kind = 'none'"
        )
    if start.then == "frozen" and config.adapter.kind == "head" and config.rounds:
        yield (
            "start.then = 'frozen' with adapter.kind = 'head' leaves nothing to train; set "
            "start.then = 'trained', or rounds = 0 for the solved head alone"
        )


@dataclass(frozen=True)
class Head:
    """A linear head on unstandardised features: logits = x W^T + b, float64."""

    weight_CD: Tensor
    bias_C: Tensor

    def times(self, scale: float) -> Head:
        return Head(scale * self.weight_CD, scale * self.bias_C)


@dataclass(frozen=True)
class Solver:
    """Heads from the clients' sums. Standardisation is folded into what comes out."""

    counts_C: Tensor
    mean_D: Tensor
    scale_D: Tensor
    means_CD: Tensor
    """Class means of standardised features; 0 where there is no row."""
    values_D: Tensor
    """Eigenvalues of the standardised features' covariance..."""
    vectors_DD: Tensor
    within: tuple[Tensor, Tensor]
    """... and both of the covariance within classes."""
    notes: tuple[str, ...]

    @staticmethod
    def of(total: Sums, names: tuple[str, ...]) -> Solver:
        """Raises UserError where no head can be made of these rows."""
        n, classes = total.rows, len(names)
        if classes < 2:
            raise UserError(
                "start: the rows have one class only, so there is nothing to tell apart; check "
                "data.task.label"
            )
        if n < classes:
            raise UserError(
                f"start: the clients have {n} training rows for {classes} classes; check "
                "data.task.label, give more rows, or set start.kind = 'none'"
            )
        counts, x, xy, xx = total.real()
        absent = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
        mean = x / n
        covariance = xx / n - torch.outer(mean, mean)
        variance = covariance.diagonal()
        flat = variance <= 1e-9 * variance.mean()
        scale = torch.where(flat, torch.ones_like(variance), variance.clamp_min(0).sqrt())
        standard = covariance / torch.outer(scale, scale)
        standard[flat], standard[:, flat] = 0.0, 0.0
        there = counts.clamp_min(1)[:, None]
        means = (xy - counts[:, None] * mean) / scale / there
        means[:, flat] = 0.0
        within = standard - (means * counts[:, None]).T @ means / n
        if float(variance.max()) <= 0:
            raise UserError(
                "start: all training rows have the same features, so no head can tell them apart; "
                "check data.task.text and data.max_length"
            )
        notes = []
        if absent:
            notes.append(
                f"no client has a training row of {', '.join(absent[:10])}"
                f"{' and others' if len(absent) > 10 else ''}: the head cannot know "
                f"{'it' if len(absent) == 1 else 'them'}"
            )
        if n < len(mean):
            notes.append(
                f"{n:,} training rows are few for a head that reads {len(mean):,} features; it is "
                "kept simple (start.regularisation), and more rows would help"
            )
        values, vectors = torch.linalg.eigh(standard)
        inside, along = torch.linalg.eigh(within)
        return Solver(counts, mean, scale, means, values, vectors, (inside, along), tuple(notes))

    def solve(self, kind: str, share: float, prior: str = "counts") -> Head:
        """One candidate. ``share``: of the mean variance, added to every eigenvalue."""
        n = float(self.counts_C.sum())
        chances = self.counts_C / n
        if kind == "ridge":
            weight = _solved(
                self.values_D, self.vectors_DD, share, self.means_CD * chances[:, None]
            )
            bias = chances.clone()
        else:
            weight = _solved(*self.within, share, self.means_CD)
            log_prior = (self.counts_C.clamp_min(0.5) / n).log()
            bias = log_prior - (weight * self.means_CD).sum(1) / 2
        if prior == "uniform":
            bias = bias - (chances if kind == "ridge" else log_prior)
        raw = weight / self.scale_D
        head = Head(raw, bias - raw @ self.mean_D)
        return head.times(RIDGE) if kind == "ridge" else head


def _solved(values_D: Tensor, vectors_DD: Tensor, share: float, right_CD: Tensor) -> Tensor:
    """right (V diag(values + share mean(values)) V^T)^-1"""
    damped = values_D.clamp_min(0) + share * float(values_D.clamp_min(0).mean())
    solved: Tensor = (right_CD @ vectors_DD / damped) @ vectors_DD.T
    return solved


def choose_share(tried: dict[str, Tensor]) -> tuple[int, float, list[dict[str, Any]]]:
    """How much the words count: of the shares whose held-out accuracy is the best one's (as
    ``choose`` has it) the one with the least smoothed loss.

    Args:
        tried: as for ``choose``, by share in the place of candidates.

    Returns:
        As ``choose``.
    """
    n, best, correct, slack = _judged(tried)
    table = [
        {"share": share, "loss": float(best.values[i]) / n, "accuracy": float(correct[i]) / n}
        for i, share in enumerate(SHARES[: len(correct)])
    ]
    top = max(line["accuracy"] for line in table)
    near = [i for i, line in enumerate(table) if line["accuracy"] >= top - slack]
    chosen = min(near, key=lambda i: table[i]["loss"])
    return chosen, SCALES[int(best.indices[chosen])], table


def _judged(tried: dict[str, Tensor]) -> tuple[float, Any, Tensor, float]:
    """Rows, the least smoothed loss over scales, right answers, and what lacks nothing."""
    n, classes = float(tried["n"]), float(tried["classes"])
    share = classes / (n + classes)
    best = ((1 - share) * tried["loss"] + share * tried["flat"]).min(1)
    correct = tried["correct"]
    top = float(correct.max()) / n
    return n, best, correct, TOLERANCE * (max(top * (1 - top), 0.0) / n) ** 0.5


def choose(
    tried: dict[str, Tensor], candidates: list[tuple[Any, float]]
) -> tuple[int, float, list[dict[str, Any]]]:
    """The most regularised discriminant (else ridge) whose held-out accuracy is the best one's.

    As good as the best is what lacks no more than ``TOLERANCE`` of its standard error: held-out
    rows that resemble the training rows are all answered by every candidate, and the weakest
    regularisation is then the worst of them elsewhere. The scale has the least smoothed loss
    (Platt's targets, 1999): n rows without an error do not say that there is none, but that the
    others have about 1 / (n + C) each, so the logits of separable rows do not grow without bound.

    Returns:
        Its position, its scale, and what all of them reached ("loss": smoothed, at its scale).

    Args:
        tried: ``loss`` and ``flat`` [candidates, scales] (of the label; the mean over all labels),
            ``correct`` [candidates]; sums over ``n`` rows; ``classes``.
    """
    n, best, correct, slack = _judged(tried)
    top = float(correct.max()) / n
    table = [
        {
            "solver": kind,
            "regularisation": share,
            "loss": float(best.values[i]) / n,
            "accuracy": float(correct[i]) / n,
        }
        for i, (kind, share) in enumerate(candidates)
    ]
    near = [i for i, line in enumerate(table) if line["accuracy"] >= top - slack]
    first = min(near, key=lambda i: KINDS.index(candidates[i][0]))
    same = [i for i in near if candidates[i][0] == candidates[first][0]]
    chosen = max(same, key=lambda i: candidates[i][1])
    return chosen, SCALES[int(best.indices[chosen])], table
