"""Differential privacy for whole clients: bounded updates, a constant divisor, noise on the sum.

Source: McMahan et al., "Learning differentially private recurrent language models" (arXiv
1710.06963), Algorithm 1, flat clipping, estimator with a fixed denominator.

    client   x_c <- x_c min(1, C / |x_c|)             over all tensors, or all slopes, together
    server   x   <- (sum_c x_c + N(0, sigma^2 C^2 I)) / (expected clients)

Departures: the server clips again, so that a client which does not, or a codec that rounds, changes
nothing about the guarantee; contributions that are not finite count as zeros; every client counts
the same and says nothing of itself (no example count, no loss); a round nobody answers is a noisy
step like any other. A cohort of fixed size is accounted without amplification: each client as if it
took part in every round, or in ``participation`` rounds, which is then enforced.

The clip bound must not be tuned on the private data: that is a release of its own, which nobody
accounts for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.core.states import State
from forefed.core.types import ClientContext, Contribution, Params, ServerContext, Update
from forefed.modifiers.modifier import Modifier
from forefed.modifiers.private import Private
from forefed.privacy import Release, bounded, noise_for, noised
from forefed.privacy.release import Unit

MODELS = "everyone who sees the models, the server excepted"
UNDRAWN = "everyone who sees the models and not who took part, the server excepted"


class DpClient(Private):
    """Client-level differential privacy: clipped updates, Gaussian noise by the server."""

    kind: Literal["dp_client"] = "dp_client"
    clip: Annotated[float, Field(gt=0)] | Literal["none"] = 1.0
    """C, the largest l2 norm of a client's update over all its tensors (with codec.kind =
    "scalars": of all its slopes of a round). About the usual norm on public or synthetic texts."""

    source: ClassVar[str] = "McMahan et al., arXiv 1710.06963"
    on_wire: ClassVar[bool] = True
    unit: ClassVar[Unit] = "client"

    @property
    def bound(self) -> float | None:
        return None if self.clip == "none" else self.clip

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        silent = replace(update, n_examples=1, metrics={})
        if update.slopes is not None:
            return replace(silent, slopes=_like(update.slopes, self.bound)), state
        return replace(silent, grad=_like(update.grad or {}, self.bound)), state

    def on_receive(
        self, c: Contribution, state: State, ctx: ServerContext
    ) -> tuple[Contribution, State]:
        if c.clients > 1:  # a sum that hides them: its members have bounded themselves
            return replace(c, noise={}), state
        # a mean of several that were clipped at the clients is no longer than one of them
        delta = bounded(c.delta, self.bound)
        return replace(c, weight=float(c.clients), delta=delta, noise={}), state

    def on_aggregate(self, total: Params, state: State, ctx: ServerContext) -> tuple[Params, State]:
        if not self.noise_multiplier:
            return {n: x.to(ctx.blank[n].dtype) for n, x in total.items()}, state
        assert self.bound is not None and ctx.divisor, "conflicts() asks for both"
        whole = {n: total[n] if n in total else zeros.double() for n, zeros in ctx.blank.items()}
        deviation = self.noise_multiplier * self.bound / ctx.divisor
        noisy = noised(whole, deviation, ctx.secret.fold(self.kind))
        return {n: x.to(ctx.blank[n].dtype) for n, x in noisy.items()}, state

    def releases(self, ctx: ServerContext) -> Sequence[Release]:
        if not self.noise_multiplier:
            return ()
        return (self._release(ctx.probability, ctx.round),)

    def planned(self, config: Any, members: int) -> Sequence[Release]:
        q = config.select.probability(members, config.cohort)
        rounds = range(1, self._rounds(config, q) + 1)
        return [self._release(q, r) for r in rounds] if self.noise_multiplier else []

    def solved(self, config: Any, members: int | None) -> Modifier:
        if self.target_epsilon is None or members is None or not config.rounds:
            return self
        q = config.select.probability(members, config.cohort)
        count = self._rounds(config, q)
        sigma = noise_for(self.target_epsilon, self.delta, 1.0 if q is None else q, count)
        return self.model_copy(update={"noise_multiplier": sigma})

    def _rounds(self, config: Any, q: float | None) -> int:
        """Rounds that one client takes part in, or may be drawn in."""
        return int(
            config.rounds if q is not None else min(self.participation or 2**62, config.rounds)
        )

    def _release(self, q: float | None, round: int) -> Release:
        return Release(
            unit="client",
            sigma=self.noise_multiplier or 0.0,
            q=1.0 if q is None else q,
            round=round,
            cap=self.participation,
            adversary=MODELS if q is None or q == 1 else UNDRAWN,
        )

    def troubles(self, config: Any) -> Iterator[str]:
        yield from super().troubles(config)
        if self.clip == "none" and (self.target_epsilon is not None or self.noise_multiplier):
            yield "without a clip no noise is enough; set clip, for example 1.0"
        if config.modifiers[-1].kind != self.kind:
            yield "bounds what travels, so nothing may change it afterwards; put it last"
        reading = [m.kind for m in config.modifiers if m.individual and m.kind != self.kind]
        if reading:
            yield f"bounds single contributions, and '{reading[0]}' changes them; drop one"
        if config.channel.least > 1 and config.select.kind == "poisson":
            yield (
                "channel.kind = 'secure_sum' gives up groups that are too small, which tells how "
                "many were drawn; set select.kind = 'uniform'"
            )
        if config.aggregator.individual:
            yield (
                f"needs a sum with a constant divisor, and aggregator.kind = "
                f"'{config.aggregator.kind}' reads single contributions; set aggregator.kind = "
                "'mean'"
            )
        if config.assign.kind != "everything":
            yield (
                f"assign.kind = '{config.assign.kind}' gives a client other units when another "
                "one is drawn, so one client's presence shows in all; set assign.kind = "
                "'everything'"
            )
        if config.cohort_min > 1:
            yield "a round abandoned for few answers tells how many there were; set cohort_min = 1"
        if config.trigger.kind != "round":
            yield (
                f"trigger.kind = '{config.trigger.kind}' moves when the answers say so; set "
                "trigger.kind = 'round'"
            )
        if config.oversampling:
            yield "hears whoever is fast, out of more than are expected; set oversampling = 0"
        if self.participation is not None and config.select.kind == "poisson":
            yield "participation is for cohorts of fixed size; leave it out, or select = 'uniform'"
        if config.codec.sends_slopes:
            yield from self._troubles_of_slopes(config)

    def _troubles_of_slopes(self, config: Any) -> Iterator[str]:
        if not config.directions.shared:
            yield (
                "slopes along directions of each client's own cannot be summed; set "
                "directions.shared = true, or codec.kind = 'dense'"
            )
        if config.client.max_steps is None:
            yield (
                "the number of a client's steps tells how many rows it has, and each is a number "
                "that gets noise; set client.max_steps"
            )
        if config.download.by_sums:
            yield "download.kind = 'pool' keeps sums of its own; set download.kind = 'dense'"
        if config.engine.kind == "auto":
            yield "the sites' machines decide the slopes they send; name one engine"


def _like(tree: Params, bound: float | None) -> Params:
    return {n: x.to(tree[n].dtype) for n, x in bounded(tree, bound).items()}
