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

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forefed.core.types import Batch, DirectionSet, LossFn, Params
from forefed.gradients.dual import Dual, Pass, ReadAgain, recording
from forefed.gradients.engine import SlopeEngine, Slopes


class Forward(SlopeEngine):
    """Forward-mode AD: K exact slopes per step, or the exact gradient of a small unit."""

    kind: Literal["forward"] = "forward"
    tangents: Annotated[int, Field(ge=1)] = 8
    """Tangents carried through one pass. More: fewer passes, more memory; the same result."""
    ad: Literal["dual", "torch"] = "dual"
    """"dual": a tensor with tangents runs the model's own code, attention in blocks; "torch":
    ``torch.func.jvp``, slower and larger, kept as the reference."""

    source: ClassVar[str] = "Baydin et al., arXiv 2202.08587; SPRY, arXiv 2405.15551"

    def slopes(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> Slopes:
        total = directions.count(body)
        value, pieces, grad = 0.0, [], {}
        fallbacks: Counter[str] = Counter()
        for start in range(0, total, self.tangents):
            ks = range(start, min(start + self.tangents, total))
            first = start == 0
            leaves = {n: x.detach().requires_grad_(first) for n, x in exact.items()}
            along = directions.tangents(body, ks)
            with torch.set_grad_enabled(first and bool(exact)):
                if self.ad == "dual":
                    primal, slopes_K, fallen = by_dual(loss, body, leaves, batch, along)
                    fallbacks += fallen
                else:
                    primal, slopes_K = by_jvp(loss, body, leaves, batch, along)
                if first:
                    value = float(primal.detach())
                    if exact:
                        grads = torch.autograd.grad(primal, list(leaves.values()))
                        grad = dict(zip(leaves, grads, strict=True))
            pieces.append(slopes_K.detach().double())
        return Slopes(value, torch.cat(pieces).cpu(), grad, fallbacks)

    def passes(self, k: int, with_head: bool) -> float:
        return -(-k // self.tangents) + k  # a primal per chunk, a tangent pass per direction


_KEEPERS: set[Any] = set()
"""Operators that once wrote over a tensor that was read again. Results do not depend on it: it
only spares the repeated pass from the second step on."""


def by_dual(
    loss: LossFn, body: Params, fixed: Params, batch: Batch, tangents_K: Params
) -> tuple[Tensor, Tensor, Counter[str]]:
    """Loss, slopes [K] for K stacked tangents, and the operators that had no rule."""
    while True:
        record = Pass(keep=_KEEPERS)
        slices = {n: torch.cat([x[None], tangents_K[n].to(x)]) for n, x in body.items()}
        try:
            with recording(record):
                result = loss({**fixed, **{n: Dual(s) for n, s in slices.items()}}, batch)
            break
        except ReadAgain as again:
            _KEEPERS.add(again.operator)
    if not isinstance(result, Dual):  # no perturbed parameter takes part in this loss
        k = len(next(iter(tangents_K.values())))
        return result, torch.zeros(k, dtype=result.dtype), record.fallbacks
    primal = result.slices[0] if result.tracked is None else result.tracked
    return primal, result.slices[1:], record.fallbacks


def by_jvp(
    loss: LossFn, body: Params, fixed: Params, batch: Batch, tangents_K: Params
) -> tuple[Tensor, Tensor]:
    """Loss and slopes [K] for K stacked tangents, by torch."""

    def of_body(params: Params) -> Tensor:
        return loss({**fixed, **params}, batch)

    def along(tangent: Params) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(of_body, (body,), (tangent,))  # type: ignore[misc]
        return value, slope

    with sdpa_kernel(SDPBackend.MATH):
        if len(next(iter(tangents_K.values()))) == 1:  # without vmap one slope costs a third less
            value, slope = along({n: x[0] for n, x in tangents_K.items()})
            return value, slope.reshape(1)
        shared_primal: Any = (None, 0)
        value, slopes_K = torch.vmap(along, out_dims=shared_primal)(tangents_K)
        return value, slopes_K
