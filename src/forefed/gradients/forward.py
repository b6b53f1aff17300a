"""Slopes by forward-mode AD.

Source: Baydin et al., "Gradients without backpropagation" (arXiv 2202.08587); SPRY, arXiv
2405.15551, section 3. A slope is <gradient, direction>, exact to rounding, and nothing is stored
for a backward pass. Several tangents share one primal pass; the head's exact gradient comes from
the same pass, because the loss is differentiable in reverse by the tensors that carry no tangent.

Two ways of computing the same numbers: dual tensors (``gradients.dual``), and ``torch.func.jvp``,
the reference against which they are tested. Fused attention has no forward derivative in torch
(pytorch#117629, #128971), so the reference computes attention in its plain, quadratic form.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forefed.core.types import Batch, DirectionSet, Each, LossFn, Params
from forefed.gradients.dual import Dual, Pass, ReadAgain, recording
from forefed.gradients.engine import SlopeEngine, Slopes, rows_at_once
from forefed.gradients.gauss_newton import CURVATURE, Tangents, by_rows


class Forward(SlopeEngine):
    """Forward-mode AD: K exact slopes per step, or the exact gradient of a small unit."""

    kind: Literal["forward"] = "forward"
    tangents: Annotated[int, Field(ge=1)] = 8
    """Tangents carried through one pass. More: fewer passes, more memory; the same result."""
    ad: Literal["dual", "torch"] = "dual"
    """"dual": a tensor with tangents runs the model's own code, attention in blocks; "torch":
    ``torch.func.jvp``, slower and larger, kept as the reference."""

    curvature: bool = False
    """The tangents of the logits also give the Gauss-Newton matrix of a step's batch over all
    unit vectors, which modifier 'gauss_newton' sends."""

    source: ClassVar[str] = "Baydin et al., arXiv 2202.08587; SPRY, arXiv 2405.15551"

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if not self.curvature:
            return
        if not any(m.kind == "gauss_newton" for m in config.modifiers):
            yield "engine.curvature: nobody reads it; set modifiers = ['gauss_newton'], or drop it"
        if not config.directions.exact or self.head == "perturbed" or self.ad != "dual":
            yield (
                "engine.curvature is over unit vectors of the adapter, by dual numbers; set "
                "directions.kind = 'basis', engine.head = 'exact' and engine.ad = 'dual'"
            )

    def emulated(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Slopes:
        found = super().emulated(loss, body, exact, batch, directions)
        if not self.curvature:
            return found
        return replace(found, kept={CURVATURE: by_rows(loss, body, exact, batch)})

    def slopes(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Slopes:
        total = directions.count(body)
        found = Slopes(0.0, torch.zeros(0, dtype=torch.float64))
        seen = Tangents.of(loss) if self.curvature else None
        loss = loss if seen is None else seen
        for start in range(0, total, self.tangents):
            ks = range(start, min(start + self.tangents, total))
            along = directions.tangents(body, ks)
            tracking = start == 0 and bool(exact)
            with torch.set_grad_enabled(tracking):
                fixed = exact if tracking else {n: x.detach() for n, x in exact.items()}
                by = by_dual if self.ad == "dual" else by_jvp
                part = by(loss, body, fixed, batch, along)
            found = (
                part
                if start == 0
                else replace(
                    found,
                    fallbacks=found.fallbacks + part.fallbacks,
                    slopes_K=torch.cat([found.slopes_K, part.slopes_K]),
                )
            )
        return found if seen is None else replace(found, kept={CURVATURE: seen.matrix(batch)})

    @property
    def in_one_pass(self) -> bool:
        """Can ``each`` stand for a call on every example by itself?"""
        return self.ad == "dual" and not self.emulates and self.sub_batches == 1

    def each(self, loss: Each, body: Params, batch: Batch, directions: DirectionSet) -> Tensor:
        """The slopes of every example's own loss, [B, K] float64, from passes over the batch."""
        total = directions.count(body)
        rows = []
        at_once = rows_at_once(batch, self.micro_batch)
        for first in range(0, batch.size, at_once):
            part = batch.rows(first, min(first + at_once, batch.size))
            found = []
            for start in range(0, total, self.tangents):
                ks = range(start, min(start + self.tangents, total))
                with torch.no_grad():
                    along = directions.tangents(body, ks)
                    result, _ = of_dual(loss, body, {}, part, along)
                slopes_KB = result.slices[1:] if isinstance(result, Dual) else None
                none = torch.zeros(len(ks), part.size)
                found.append(none if slopes_KB is None else slopes_KB.detach().cpu())
            rows.append(torch.cat(found).double().T)
        return torch.cat(rows)

    @property
    def at_once(self) -> int:
        return self.tangents

    def passes(self, k: int, with_head: bool) -> float:
        return -(-k // self.tangents) + k  # a primal per chunk, a tangent pass per direction


_KEEPERS: defaultdict[frozenset[str], set[Any]] = defaultdict(set)
"""By the names that were perturbed: operators that wrote over a tensor that was read again. Results
do not depend on it: it only spares the repeated pass from the second step on."""


def of_dual(
    loss: Each, body: Params, fixed: Params, batch: Batch, tangents_K: Params
) -> tuple[Tensor, Pass]:
    """A loss of dual tensors, and the record of its pass."""
    keep = _KEEPERS[frozenset(body)]
    while True:
        record = Pass(keep=keep)
        slices = {n: torch.cat([x[None], tangents_K[n].to(x)]) for n, x in body.items()}
        try:
            with recording(record):
                return loss({**fixed, **{n: Dual(s) for n, s in slices.items()}}, batch), record
        except ReadAgain as again:
            keep.add(again.operator)


def by_dual(loss: LossFn, body: Params, fixed: Params, batch: Batch, tangents_K: Params) -> Slopes:
    """Loss and slopes for K stacked tangents, by dual tensors."""
    result, record = of_dual(loss, body, fixed, batch, tangents_K)
    if not isinstance(result, Dual):  # no perturbed parameter takes part in this loss
        count = len(next(iter(tangents_K.values())))
        return _slopes(result, torch.zeros(count), record.fallbacks, record.saved_bytes)
    primal = result.slices[0] if result.tracked is None else result.tracked
    return _slopes(primal, result.slices[1:], record.fallbacks, record.saved_bytes)


def by_jvp(loss: LossFn, body: Params, fixed: Params, batch: Batch, tangents_K: Params) -> Slopes:
    """Loss and slopes for K stacked tangents, by torch."""

    def of_body(params: Params) -> Tensor:
        return loss({**fixed, **params}, batch)

    def along(tangent: Params) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(of_body, (body,), (tangent,))  # type: ignore[misc]
        return value, slope

    with sdpa_kernel(SDPBackend.MATH):
        if len(next(iter(tangents_K.values()))) == 1:  # without vmap one slope costs a third less
            value, slope = along({n: x[0] for n, x in tangents_K.items()})
            return _slopes(value, slope.reshape(1))
        shared_primal: Any = (None, 0)
        return _slopes(*torch.vmap(along, out_dims=shared_primal)(tangents_K))


def _slopes(
    primal: Tensor,
    slopes_K: Tensor,
    fallbacks: Counter[str] | None = None,
    saved_bytes: float = math.inf,
) -> Slopes:
    return Slopes(
        float(primal.detach()),
        slopes_K.detach().cpu().double(),
        tracked=primal if primal.requires_grad else None,
        saved_bytes=saved_bytes,
        fallbacks=fallbacks or Counter(),
    )
