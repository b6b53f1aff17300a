"""None, one or several labels a row: targets are 1 for a label that it has, 0 for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Params
from forefed.data.examples import Indices
from forefed.start.solver import Head, Solver
from forefed.start.sums import Sums
from forefed.start.targets.targets import (
    SCALES,
    SHARES,
    Candidate,
    Chosen,
    Targets,
    chosen_by,
    missing,
    with_words,
)


class Labels(Targets):
    """A discriminant of every label by itself, all from one decomposition (``Solver.labels``).

    Chosen as one class is, by micro-F1 in the place of accuracy. Its logits are log odds with the
    label's own share among the rows, so 0 is where a label is said; moving that threshold by
    held-out rows won nothing (docs/LOG.md), multiplying them all (``SCALES``) calibrates them.
    """

    solvers: ClassVar[tuple[str, ...]] = ("discriminant",)

    @property
    def length(self) -> float:
        return float(len(self.names)) ** 0.5

    def of(self, labels: Indices) -> Tensor:
        return torch.from_numpy(np.asarray(labels)).double()

    def enough(self, labels: Indices, least: int) -> Indices:
        """Rows with a label, or without one, that fewer rows have alike are left out, until there
        is none."""
        kept: Indices = np.arange(len(labels))
        while len(kept):
            marks = labels[kept] > 0
            held = marks.sum(0)
            few = (marks & (held < least)) | (~marks & (len(kept) - held < least))
            if not few.any():
                break
            kept = kept[~few.any(1)]
        return kept

    def check(self, sums: Sums) -> None:
        if bool((sums.y < 0).any() | (sums.y > sums.rows).any()):
            raise ProtocolError("counts of labels are not those of the rows")

    def possible(self, n: Tensor | None, y_C: Tensor) -> tuple[int, Tensor]:
        assert n is not None
        rows = max(int(n.round()), 2)
        return rows, y_C.clamp(0, rows)

    def usable(self, total: Sums) -> list[str]:
        if total.rows < 2 or not bool(total.y.any()):
            raise UserError(
                f"start: the clients have {total.rows} training rows with {int(total.y.sum())} "
                "labels, from which no head can be made; check data.task.label, give more rows, or "
                "set start.kind = 'none'"
            )
        named = zip(self.names, total.y.tolist(), strict=True)
        counts = dict(named)
        absent = [name for name, x in counts.items() if not x]
        always = [name for name, x in counts.items() if x == total.rows]
        notes = [missing("no client has a training row with", absent)] if absent else []
        notes += [missing("every training row has the label", always)] if always else []
        return notes

    def head(self, solver: Solver, candidate: Candidate, prior: str) -> Head:
        return solver.labels(candidate[1], prior == "counts")

    def tried(self, features: Sequence[Tensor], words_NC: Tensor | None, labels: Indices) -> Params:
        """``loss`` and ``flat`` [H, S, T] (means over labels; of the true marks and of a half),
        ``found`` and ``said`` [H, S] and ``held``, all over labels and rows, ``n``."""
        marks_NC = torch.from_numpy(np.asarray(labels)).double()
        half_NC = torch.full_like(marks_NC, 0.5)
        found: dict[str, list[Tensor]] = {"loss": [], "flat": [], "found": [], "said": []}
        for features_NC in features:
            each = with_words(features_NC, words_NC)
            for name, true_NC in (("loss", marks_NC), ("flat", half_NC)):
                losses = [[_loss(scale * x, true_NC) for scale in SCALES] for x in each]
                found[name].append(torch.tensor(losses, dtype=torch.float64))
            said = [x > 0 for x in each]
            right = [(x & (marks_NC > 0)).sum() for x in said]
            found["found"].append(torch.tensor(right).double())
            found["said"].append(torch.tensor([x.sum() for x in said]).double())
        sums = {name: torch.stack(parts) for name, parts in found.items()}
        n = torch.tensor(float(len(marks_NC)), dtype=torch.float64)
        return {**sums, "held": marks_NC.sum(), "n": n}

    def shapes(self, heads: int, words: bool) -> dict[str, tuple[int, ...]]:
        each = (heads, len(SHARES) if words else 1, len(SCALES))
        sums = {"loss": each, "flat": each, "found": each[:2], "said": each[:2]}
        return {**sums, "held": (), "n": ()}

    def choose(self, tried: Params, candidates: Sequence[Candidate]) -> Chosen:
        n, held = float(tried["n"]), float(tried["held"])
        smoothing = 2 / (n + 2)
        losses_HST = ((1 - smoothing) * tried["loss"] + smoothing * tried["flat"]) / n
        f1_HS = 2 * tried["found"] / (held + tried["said"]).clamp_min(1)
        return chosen_by(f1_HS, "micro_f1", max(held, 1), losses_HST, candidates, self.solvers)


def _loss(logits_NC: Tensor, true_NC: Tensor) -> float:
    each: Tensor = binary_cross_entropy_with_logits(logits_NC, true_NC, reduction="none")
    return float(each.mean(1).sum())
