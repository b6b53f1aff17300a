"""Gauss-Newton matrices from tangents of logits: G = mean over examples of J^T H J.

Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent"
(Neural Computation 14, 2002). J [C, K] are the logits' tangents along the K unit vectors that
forward mode carries anyway, H [C, C] is the second derivative of an example's loss by its logits
(diag p - p p^T of a cross-entropy). Reverse mode would take a backward pass for every class of
every example.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forefed.core.errors import UserError
from forefed.core.types import Batch, InTwo, LossFn, Params, in_two_of
from forefed.gradients.dual import Dual

CURVATURE = "curvature"
"""Name of the matrix [K, K] in ``Estimate.kept``, float64; K as the parameters are flattened."""


@dataclass
class Tangents:
    """A loss that keeps what passes of one micro-batch say of its logits (local to one call).

    ``z_BC``: the logits; ``parts``: their tangents, [k, B, C] a pass.
    """

    whole: LossFn
    halves: InTwo
    z_BC: Tensor | None = None
    parts: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of(loss: LossFn) -> Tangents:
        """Raises UserError where a loss has no logits that are held at once."""
        return Tangents(loss, _halves(loss))

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        given: Any = self.halves.logits(params, batch)
        slices = given.slices.detach() if isinstance(given, Dual) else given.detach()[None]
        self.z_BC = slices[0].double().cpu()
        if isinstance(given, Dual):
            self.parts.append(slices[1:].double().cpu())
        return self.halves.losses(given, batch).sum() / max(self.weight(batch), 1)

    def weight(self, batch: Batch) -> int:
        return self.whole.weight(batch)

    def matrix(self, batch: Batch) -> Tensor:
        """G of the mean loss, [K, K] float64. A loss that no tangent reaches has none: [0, 0]."""
        assert self.z_BC is not None, "a pass comes first"
        if not self.parts:
            return torch.zeros(0, 0, dtype=torch.float64)
        mean = _products(self.halves, self.z_BC, torch.cat(self.parts), batch)
        return mean / max(self.weight(batch), 1)


def by_rows(loss: LossFn, body: Params, fixed: Params, batch: Batch) -> Tensor:
    """The same matrix by a backward pass for every class of every example, [K, K] float64."""
    halves, z_BC, j_BCK = _halves(loss), [], []
    for b in range(batch.size):
        with torch.enable_grad():
            leaves = {n: x.detach().requires_grad_() for n, x in body.items()}
            z_C = halves.logits({**fixed, **leaves}, batch.rows(b, b + 1))[0]
            along = torch.eye(len(z_C)).to(z_C)
            found = [
                torch.autograd.grad(
                    z_C, list(leaves.values()), one, retain_graph=True, materialize_grads=True
                )
                for one in along
            ]
        z_BC.append(z_C.detach().double().cpu())
        rows = [torch.cat([g.flatten() for g in grads]).double().cpu() for grads in found]
        j_BCK.append(torch.stack(rows))
    j_KBC = torch.stack(j_BCK).permute(2, 0, 1)
    return _products(halves, torch.stack(z_BC), j_KBC, batch) / max(loss.weight(batch), 1)


def _halves(loss: LossFn) -> InTwo:
    """Raises UserError where a loss has no logits that are held at once."""
    halves = in_two_of(loss)
    if halves is None:
        raise UserError(
            "engine.curvature: this loss shows no logits, one vector a text, from which it is "
            "made (a language model's, spans', an own loss without `in_two`); drop it"
        )
    return halves


def _products(halves: InTwo, z_BC: Tensor, j_KBC: Tensor, batch: Batch) -> Tensor:
    """The sum over examples of J^T H J."""

    def total(z_BC: Tensor) -> Tensor:
        return halves.losses(z_BC, batch).sum()

    def along(tangent_BC: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(torch.func.grad(total), (z_BC,), (tangent_BC,))[1]
        return found

    # H is symmetric, and that of one example by another's logits is zero
    h_j_KBC = torch.stack([along(t_BC) for t_BC in j_KBC])
    return j_KBC.flatten(1) @ h_j_KBC.flatten(1).T
