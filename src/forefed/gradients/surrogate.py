"""The gradient of a surrogate: a Gaussian process through all values of the loss that were asked.

Source: FZooS (Shu et al., arXiv 2308.04077), section 4.1. A step asks for the loss where it stands
and at ``queries`` points around, the most doubtful of ``drawn`` ones; the surrogate goes through
the ``nearest`` of these and of all that the client has asked before, and its gradient is the
step's. A finite difference forgets; this does not, so a step may take fewer questions than there
are parameters.

Departures: points are drawn at once and the most doubtful are taken together (each would change
the others' doubt); no more questions at the end of a round; nothing is scaled (matern.py).

Legend: D parameters of a client in one vector, Q points asked so far, C drawn ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.core.states import State
from forefed.core.types import Batch, DirectionSet, Estimate, LossFn, Params, at_points_of
from forefed.gradients import matern
from forefed.gradients.engine import GradientEngine, Rows, micro_batches

LARGEST = 5_000
"""Parameters: a client keeps ``memory`` points of so many numbers, and far fewer questions than
parameters say little of a gradient."""

Count = Annotated[int, Field(ge=1)]


class Surrogate(GradientEngine):
    """Zeroth order with a memory: a Gaussian process through all losses that were asked (FZooS)."""

    kind: Literal["surrogate"] = "surrogate"
    queries: Count = 5
    """Points of a step that are asked beside the one where it stands."""
    drawn: Count = 100
    """Points nearby of which these are the most doubtful."""
    radius: Annotated[float, Field(gt=0)] = 0.01
    """How far every parameter of such a point lies away at most."""
    nearest: Annotated[int, Field(ge=2)] = 150
    """Points that a step's surrogate goes through."""
    memory: Annotated[int, Field(ge=2)] = 500
    """Points that a client keeps, the latest."""
    length: Annotated[float, Field(gt=0)] = 1.0
    """The kernel's, in units of the parameters: over how far the loss is smooth."""
    ridge: Annotated[float, Field(gt=0)] = 1e-6
    """Variance of a value's error, as a share of the prior's."""

    source: ClassVar[str] = "FZooS, arXiv 2308.04077"
    by_values: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    _kept: State = PrivateAttr(default_factory=dict)
    _key: Key = PrivateAttr(default=Key(0))

    def recalling(self, kept: State, key: Key) -> GradientEngine:
        one = self.model_copy()
        one._kept, one._key = kept, key
        return one

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        client = config.client
        if client.batch_size != "all" or client.sampler.kind != "shuffled":
            yield (
                "engine.kind = 'surrogate' goes through losses of earlier steps, which are of the "
                "same rows only with client.batch_size = 'all' and client.sampler.kind = 'shuffled'"
            )
        if config.assign.kind != "everything" or config.sharing.kind != "everything":
            yield (
                "engine.kind = 'surrogate' keeps points of all parameters together; set "
                "assign.kind = 'everything' and sharing.kind = 'everything'"
            )
        if getattr(config.adapter, "dropout", 0.0) > 0:
            yield "engine.kind = 'surrogate' goes through losses of one function; set dropout = 0"

    def __call__(
        self,
        loss: LossFn,
        params: Params,
        batch: Batch,
        directions: DirectionSet | None = None,
        head: frozenset[str] = frozenset(),
    ) -> Estimate:
        at_D = trees.flatten(params).detach().cpu()
        if len(at_D) > LARGEST:
            raise UserError(
                f"engine.kind = 'surrogate': {len(at_D):,} parameters, at most {LARGEST:,}; train "
                "fewer (adapter.kind = 'tinylora'), or take engine.kind = 'finite_difference'"
            )
        points_QD, values_Q = self._known(len(at_D))
        new_PD = torch.cat([at_D[None], self._around(at_D, points_QD)])
        new_P = values_at(loss, new_PD, params, batch, self.micro_batch)
        whole_P = torch.isfinite(new_P)
        points_QD = torch.cat([points_QD, new_PD[whole_P]])[-self.memory :]
        values_Q = torch.cat([values_Q, new_P[whole_P]])[-self.memory :]
        near = self._near(at_D, points_QD)
        x_QD, y_Q = points_QD[near], values_Q[near]
        slope_D = torch.full_like(at_D, torch.nan, dtype=torch.float64)
        if len(near) > 1 and whole_P[0]:
            alpha_Q = matern.coefficients(x_QD, y_Q, self.length, self.ridge)
            slope_D = matern.gradient(at_D, x_QD, alpha_Q, self.length)
        grad = {n: x.to(params[n]) for n, x in trees.unflatten(slope_D, params).items()}
        kept = {"points": points_QD, "values": values_Q}
        return Estimate(float(new_P[0]), grad, None, float(len(new_P) * batch.size), {}, kept)

    def _known(self, size: int) -> tuple[Tensor, Tensor]:
        """Points [Q, D] and values [Q] of earlier steps; none, where they are of another form."""
        points = self._kept.get("points")
        if points is None or points.shape[1] != size:
            return torch.zeros(0, size), torch.zeros(0, dtype=torch.float64)
        return points, self._kept["values"]

    def _around(self, at_D: Tensor, points_QD: Tensor) -> Tensor:
        """The points that are asked beside this one: [queries, D]."""
        drawn_CD = 2 * self._key.fold("candidates").uniform((self.drawn, len(at_D))) - 1
        near_CD = at_D + self.radius * drawn_CD.to(at_D)
        known_QD = torch.cat([points_QD[self._near(at_D, points_QD)], at_D[None]])
        doubt_C = matern.doubt(near_CD, known_QD, self.length, self.ridge)
        return near_CD[doubt_C.argsort(descending=True, stable=True)[: self.queries]]

    def _near(self, at_D: Tensor, points_QD: Tensor) -> Tensor:
        """The places of the nearest points, in the order in which they were asked."""
        far_Q = (points_QD.double() - at_D.double()).square().sum(1)
        return far_Q.argsort(stable=True)[: self.nearest].sort().values


def values_at(loss: LossFn, points_PD: Tensor, like: Params, batch: Batch, rows: Rows) -> Tensor:
    """The batch's mean loss at points that are flattened parameters: [P] float64."""
    many = at_points_of(loss)
    values_P = torch.zeros(len(points_PD), dtype=torch.float64)
    with torch.no_grad():
        for part, share in micro_batches(loss, batch, rows):
            if many is not None:
                values_P += share * many(_stacked(points_PD, like), part)
                continue
            for p, point_D in enumerate(points_PD):
                at = {n: x.to(like[n]) for n, x in trees.unflatten(point_D, like).items()}
                values_P[p] += share * float(loss(at, part))
    return values_P


def _stacked(points_PD: Tensor, like: Params) -> Params:
    sizes = [x.numel() for x in like.values()]
    return {
        n: part.reshape(len(points_PD), *x.shape).to(x)
        for (n, x), part in zip(like.items(), points_PD.split(sizes, dim=1), strict=True)
    }
