"""Differential privacy for single examples: DP-SGD at the client, with the client's own noise.

Source: Abadi et al., "Deep learning with differential privacy" (arXiv 1607.00133), Algorithm 1.

    every step   g_e <- g_e min(1, C / |g_e|)                  each example of a Poisson batch
                 g   <- (sum_e g_e + N(0, sigma^2 C^2 I)) / (q D)

What is clipped is what decides the step of one example: its exact gradient, or its slopes along the
step's directions together with the exact gradient of the head. Directions are public, so whatever
is rebuilt from noisy slopes costs nothing more, and K slopes get K numbers of noise. An empty batch
is a noisy step. Slopes of all examples come from one forward-mode pass over the batch where nothing
else is trained (``Forward.each``: the head perturbed or frozen); otherwise examples are computed
one by one, as many passes as a batch has rows.

Departure: the number D of a client's rows counts as known (an example that is not there counts as
zeros), so that the divisor q D is a constant. The server is no party to trust: the noise is the
client's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from forefed.core.states import State
from forefed.core.types import ClientContext, Params, ServerContext, Update
from forefed.modifiers.modifier import Modifier
from forefed.modifiers.private import Private
from forefed.privacy import Release, bounded, noise_for, noised
from forefed.privacy.release import Unit

EVERYONE = "everyone but the client itself, the server included"


class DpExample(Private):
    """Example-level differential privacy: clipped examples, Gaussian noise at the clients."""

    kind: Literal["dp_example"] = "dp_example"
    clip: Annotated[float, Field(gt=0)] | Literal["none"] = 1.0
    """C, the largest l2 norm of what one example adds to a step."""

    source: ClassVar[str] = "Abadi et al., arXiv 1607.00133"
    unit: ClassVar[Unit] = "example"
    per_example: ClassVar[bool] = True

    _sampled: tuple[float, int] = PrivateAttr((1.0, 1))  # rate and steps of the client's sampler

    @property
    def bound(self) -> float | None:
        return None if self.clip == "none" else self.clip

    def on_example(self, message: Params, ctx: ClientContext) -> Params:
        return bounded(message, self.bound)

    def on_sum(self, total: Params, expected: float, ctx: ClientContext, step: int) -> Params:
        mean = {n: x / expected for n, x in total.items()}
        if not self.noise_multiplier:
            return mean
        assert self.bound is not None, "conflicts() asks for a clip"
        secret = ctx.secret.fold(self.kind, step)
        return noised(mean, self.noise_multiplier * self.bound / expected, secret)

    def on_send(self, update: Update, state: State, ctx: ClientContext) -> tuple[Update, State]:
        told = {n: x for n, x in update.metrics.items() if n == "steps"}
        return replace(update, metrics=told), state

    def releases(self, ctx: ServerContext) -> Sequence[Release]:
        return (self._release(ctx.round),) if self.noise_multiplier else ()

    def planned(self, config: Any, members: int) -> Sequence[Release]:
        rounds = min(self.participation or 2**62, config.rounds)
        return [self._release(r) for r in range(1, rounds + 1)] if self.noise_multiplier else ()

    def solved(self, config: Any, members: int | None) -> Modifier:
        rate = getattr(config.client.sampler, "rate", 1.0)
        steps = config.client.max_steps or 1
        rounds = min(self.participation or 2**62, config.rounds)
        sigma = self.noise_multiplier
        if self.target_epsilon is not None and rounds:
            sigma = noise_for(self.target_epsilon, self.delta, rate, steps * rounds)
        found = self.model_copy(update={"noise_multiplier": sigma})
        found._sampled = (rate, steps)
        return found

    def _release(self, round: int) -> Release:
        rate, steps = self._sampled
        return Release(
            unit="example",
            sigma=self.noise_multiplier or 0.0,
            q=rate,
            count=steps,
            round=round,
            cap=self.participation,
            adversary=EVERYONE,
        )

    def troubles(self, config: Any) -> Iterator[str]:
        yield from super().troubles(config)
        if self.clip == "none" and (self.target_epsilon is not None or self.noise_multiplier):
            yield "without a clip no noise is enough; set clip, for example 1.0"
        if config.client.sampler.kind != "poisson":
            yield (
                "accounts for examples that are drawn one by one; set client.sampler = 'poisson' "
                "with its rate"
            )
        if getattr(config.engine, "sub_batches", 1) > 1:
            yield "computes examples one by one, so engine.sub_batches has no parts; leave it at 1"
