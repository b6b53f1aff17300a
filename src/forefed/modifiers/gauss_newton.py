"""Damped Gauss-Newton steps of the server from sums that clients send beside their gradient.

Source: Martens, "Deep learning via Hessian-free optimization" (ICML 2010) for the damped step,
Levenberg's for the damping; sums over clients as in FedNL (arXiv 2106.02969), of which this is the
variant without compression and memory. Matrices are those of ``engine.curvature``.

    client  g_i, the gradient of one step, and G_i, its Gauss-Newton matrix, at the same parameters
    server  g <- mean g_i,  G <- mean G_i             both weighted by examples
            w <- w - (G + damping tr(G)/D I)^-1 g     times the rate of the server's optimiser

tr(G)/D is the mean over all tensors: one that the logits hardly feel has g of its own size but G of
its square, and damped by itself it would go the further the less it matters.

Both are sums over the cohort's rows at the parameters that were sent, so clients do not drift.
The head keeps its plain step. A parameter of D numbers costs D (D + 1) / 2 numbers beside it.

They also say more of the rows than the gradient does: nobody who must not see a gradient should.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from forefed.core import trees
from forefed.core.errors import UserError
from forefed.core.states import State
from forefed.core.types import ClientContext, Contribution, Params, ServerContext, Update
from forefed.modifiers.modifier import Modifier

LARGEST = 1024
"""Numbers of a block: 2 MB of float32 beside a change."""
TOGETHER = "all"


class GaussNewton(Modifier):
    """The server steps along the gradient through the inverse of a damped Gauss-Newton matrix."""

    kind: Literal["gauss_newton"] = "gauss_newton"
    damping: Annotated[float, Field(gt=0)] = 1.0
    """Added to the diagonal, as a share of its mean over all tensors."""
    blocks: Literal["tensor", "all"] = "tensor"
    """"tensor": a matrix for every trained tensor of the adapter, as if they were independent;
    "all": one over all of them, which every client has to train."""

    source: ClassVar[str] = "Schraudolph, Neural Computation 14, 2002; FedNL, arXiv 2106.02969"
    accepts: ClassVar[tuple[str, ...]] = ("delta",)
    individual: ClassVar[bool] = True

    _client: Any = PrivateAttr(default=None)
    _rounds: int = PrivateAttr(default=0)

    def solved(self, config: Any, members: int | None) -> Modifier:
        knowing = self.model_copy()
        knowing._client, knowing._rounds = config.client, config.rounds
        return knowing

    def beside(self, params: Params, head: frozenset[str]) -> Params:
        blocks = self._blocks({n: x.numel() for n, x in params.items() if n not in head})
        sizes = {block: sum(parts.values()) for block, parts in blocks.items()}
        large = {n: d for n, d in sizes.items() if d > LARGEST}
        if large:
            name, d = next(iter(large.items()))
            raise UserError(
                f"modifiers: 'gauss_newton' has a matrix over the {d:,} numbers of {name}, at most "
                f"{LARGEST:,}; train fewer (adapter.kind = 'tinylora'), or set blocks = 'tensor'"
            )
        return {n: torch.zeros(d * (d + 1) // 2) for n, d in sizes.items()}

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        form = self.beside(ctx.start, ctx.head)
        found_DD, sums = ctx.memory.get("curvature"), {}
        trained = [n for n in ctx.order.assigned if n not in ctx.head]
        at, places = 0, {}
        for n in trained:
            places[n] = range(at, at + ctx.start[n].numel())
            at += len(places[n])
        for block, parts in self._blocks({n: ctx.start[n].numel() for n in ctx.start}).items():
            if block not in form:
                continue
            own = [n for n in parts if n in places]
            sums[block] = form[block]
            if found_DD is not None and found_DD.numel() and own:
                at_D = torch.tensor([i for n in own for i in places[n]])
                sums[block] = packed(found_DD[at_D][:, at_D]).float()
        told = {f"{self.kind}/{n}": x for n, x in sums.items()}
        return replace(update, beside={**update.beside, **told}), state

    def on_receive(
        self, c: Contribution, state: State, ctx: ServerContext
    ) -> tuple[Contribution, State]:
        head = {n for unit in ctx.units if unit.is_head for n in unit.params}
        own = [n for n in c.delta if n not in head]
        sums = {n: c.beside[f"{self.kind}/{n}"].double() for n in self._blocks(dict.fromkeys(own))}
        if not c.weight or not trees.all_finite(sums):
            return replace(c, weight=0.0), state
        new = dict(state)
        for n, x in sums.items():
            weight = torch.tensor(float(c.weight), dtype=torch.float64)
            new[f"sum/{n}"] = state[f"sum/{n}"] + weight * x if f"sum/{n}" in state else weight * x
            new[f"weight/{n}"] = state.get(f"weight/{n}", torch.zeros_like(weight)) + weight
        return c, new

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        head = {n for unit in ctx.units if unit.is_head for n in unit.params}
        rate = ctx.times * float(self._client.optimiser.at(ctx.round, self._rounds).lr)
        form = self._blocks({n: x.numel() for n, x in total.items() if n not in head})
        known = {b: sum(parts.values()) for b, parts in form.items() if f"sum/{b}" in state}
        if not known or not rate:
            return total, {}
        matrices = {
            b: unpacked(state[f"sum/{b}"] / state[f"weight/{b}"], d) for b, d in known.items()
        }
        mean = float(sum(x.trace() for x in matrices.values())) / sum(known.values())
        moved = dict(total)
        for block, g_DD in matrices.items():
            like = trees.pick(total, form[block])
            g_D = trees.flatten(like).double() / rate
            step = trees.unflatten(solved(g_DD, g_D, self.damping * mean), like)
            moved |= {n: x.to(total[n]) for n, x in step.items()}
        return moved, {}

    def _blocks(self, sizes: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The tensors of every block, in the order of a matrix: by name, as dicts that come over
        the wire have no order of their own."""
        if self.blocks == "all":
            return {TOGETHER: dict(sorted(sizes.items()))} if sizes else {}
        return {n: {n: size} for n, size in sizes.items()}

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if not getattr(config.engine, "curvature", False):
            yield (
                "modifiers: 'gauss_newton' sends what the engine sees of the loss; set "
                "engine.kind = 'forward' and engine.curvature = true"
            )
        if not config.client.linear or config.client.max_steps != 1:
            yield (
                "modifiers: 'gauss_newton' is about the gradient of one step; set "
                "client.max_steps = 1 and client.optimiser.kind = 'sgd', without momentum or "
                "weight decay"
            )
        if config.sharing.kind != "everything":
            yield "modifiers: 'gauss_newton' knows shared parameters; set sharing = 'everything'"
        if self.blocks == "all" and config.assign.kind != "everything":
            yield (
                "modifiers: 'gauss_newton' with blocks = 'all' wants the same numbers of every "
                "client; set assign.kind = 'everything', or blocks = 'tensor'"
            )


def solved(g_DD: Tensor, g_D: Tensor, damping: float) -> Tensor:
    """(G + damping I)^-1 g, float64. Of G only what is not negative counts: what somebody sent may
    not be a sum of squares. Without anything to divide by it is the gradient itself."""
    if damping <= 0:
        return g_D
    values_D, vectors_DD = torch.linalg.eigh(g_DD)
    return vectors_DD @ (vectors_DD.T @ g_D / (values_D.clamp(min=0) + damping))


def packed(x_DD: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix, row by row; inverse: ``unpacked``."""
    rows, columns = torch.triu_indices(*x_DD.shape)
    return x_DD[rows, columns]


def unpacked(values: Tensor, size: int) -> Tensor:
    rows, columns = torch.triu_indices(size, size)
    x_DD = values.new_zeros(size, size)
    x_DD[rows, columns] = values
    x_DD[columns, rows] = values
    return x_DD
