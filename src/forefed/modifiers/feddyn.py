"""FedDyn: Acar et al., "Federated learning based on dynamic regularization" (ICLR 2021, arXiv
2111.04263), Algorithm 1. A pull to the round's start, and beside it what all former pulls have
added up to at this client, so that the clients' fixed point is the optimum of the mean loss, not
one between their own (FedProx).

    client  g <- gradient + alpha (w - w_start + h_i);   after the round  h_i <- h_i + w - w_start
    server  w <- mean of the w_i + h;  before  h <- h + share (mean of the w_i - w_start)

``share`` is that of the cohort in the population: h is the mean of all clients' h_i, kept by the
server alone, as theirs never leave them. With a SAM gradient at the client (``engine.kind =
"sam"``) this is FedSpeed: Sun et al., ICLR 2023, arXiv 2302.10429 (its h_i and lambda' are these
h_i and alpha).

Departures: in FedDyn's own letters its lambda_i is - alpha h_i. Means are weighted by examples
(published: by clients); h is the mean of the h_i exactly where everybody takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.core.states import State
from forefed.core.types import ClientContext, Params, ServerContext, Update
from forefed.modifiers.modifier import Modifier


class FedDyn(Modifier):
    """Clients are pulled to the common optimum, by what they have drifted so far."""

    kind: Literal["feddyn"] = "feddyn"
    alpha: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull, in units of 1 / client learning rate."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the population in a cohort; None: as the run has it."""

    source: ClassVar[str] = "Acar et al., arXiv 2111.04263"
    accepts: ClassVar[tuple[str, ...]] = ("delta",)
    replayable: ClassVar[bool] = False

    def on_step(
        self, grad: Params, at: Params, state: State, ctx: ClientContext, step: int
    ) -> tuple[Params, State]:
        pulled = {}
        for n, g in grad.items():
            apart = at[n] - ctx.start[n]
            pulled[n] = g + self.alpha * (apart + state[n] if n in state else apart)
        return pulled, state

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        if update.n_examples == 0:
            return update, state
        moved = update.grad or {}  # old - new
        return update, {
            **state,
            **{n: state[n] - x if n in state else -x for n, x in moved.items()},
        }

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        share = self.share or 1.0
        new = dict(state)
        for n, x in total.items():
            new[n] = new[n] - share * x if n in new else -share * x
        return {n: x - new[n] for n, x in total.items()}, new

    def solved(self, config: Any, members: int | None) -> Modifier:
        if members is None or self.share is not None:
            return self
        return self.model_copy(update={"share": min(1.0, config.cohort / members)})

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from super().conflicts(config)
        if config.assign.kind != "everything" and getattr(config.assign, "rotate", True):
            yield (
                f"modifiers: 'feddyn' keeps what a client's own parameters have drifted, and "
                f"assign.kind = '{config.assign.kind}' gives it others in every round; set "
                "assign.rotate = false, or assign.kind = 'everything'"
            )
        if config.sharing.personal:
            yield (
                f"modifiers: 'feddyn' corrects what all share, and sharing.kind = "
                f"'{config.sharing.kind}' keeps a part at each client; drop one"
            )
        if not config.server.plain:
            yield (
                "modifiers: 'feddyn' gives the new parameters, not a direction; set server.kind = "
                "'sgd', server.lr = 1, no momentum and no schedule"
            )
