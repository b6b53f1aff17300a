"""Slopes by forward-mode AD: the reference engine, on ``torch.func.jvp``.

Source: Baydin et al., "Gradients without backpropagation" (arXiv 2202.08587); SPRY, arXiv
2405.15551, section 3. A slope is <gradient, direction>, exact to rounding, and nothing is stored
for a backward pass. Several tangents share one primal pass (vmap over jvp); the head's exact
gradient comes from the same pass, because the loss is differentiable in reverse by the tensors that
the jvp treats as constants.

Fused attention has no forward derivative in torch (pytorch#117629, #128971), so attention runs in
its plain, quadratic form while slopes are taken.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from forefed.core.types import Batch, DirectionSet, LossFn, Params
from forefed.gradients.engine import SlopeEngine


class Forward(SlopeEngine):
    """Forward-mode AD: K exact slopes per step, or the exact gradient of a small unit."""

    kind: Literal["forward"] = "forward"
    tangents: Annotated[int, Field(ge=1)] = 8
    """Tangents carried through one pass. More: fewer passes, more memory; the same result."""

    source: ClassVar[str] = "Baydin et al., arXiv 2202.08587; SPRY, arXiv 2405.15551"

    def slopes(
        self, loss: LossFn, body: Params, exact: Params, batch: Batch, directions: DirectionSet
    ) -> tuple[float, Tensor, Params]:
        total = directions.count(body)
        value, pieces, grad = 0.0, [], {}
        for start in range(0, total, self.tangents):
            ks = range(start, min(start + self.tangents, total))
            first = start == 0
            with torch.set_grad_enabled(first and bool(exact)), sdpa_kernel(SDPBackend.MATH):
                leaves = {n: x.detach().requires_grad_(first) for n, x in exact.items()}
                primal, slopes_K = _jvp(loss, body, leaves, batch, directions.tangents(body, ks))
                if first:
                    value = float(primal.detach())
                    if exact:
                        grads = torch.autograd.grad(primal, list(leaves.values()))
                        grad = dict(zip(leaves, grads, strict=True))
            pieces.append(slopes_K.detach().double())
        return value, torch.cat(pieces).cpu(), grad

    def passes(self, k: int, with_head: bool) -> float:
        return -(-k // self.tangents) + k  # a primal per chunk, a tangent pass per direction


def _jvp(
    loss: LossFn, body: Params, fixed: Params, batch: Batch, tangents_K: Params
) -> tuple[Tensor, Tensor]:
    """Loss and slopes [K] for K stacked tangents."""

    def of_body(params: Params) -> Tensor:
        return loss({**fixed, **params}, batch)

    def along(tangent: Params) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(of_body, (body,), (tangent,))  # type: ignore[misc]
        return value, slope

    if len(next(iter(tangents_K.values()))) == 1:  # without vmap one slope costs a third less
        value, slope = along({n: x[0] for n, x in tangents_K.items()})
        return value, slope.reshape(1)
    shared_primal: Any = (None, 0)
    value, slopes_K = torch.vmap(along, out_dims=shared_primal)(tangents_K)
    return value, slopes_K
