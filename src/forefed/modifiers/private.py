"""What the private modifiers share: noise or a target, delta, the participation cap, and what would
let out of a run what they do not account for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field

from forefed.modifiers.modifier import Modifier
from forefed.privacy.release import Unit


class Private(Modifier):
    """Base of differentially private modifiers."""

    private: ClassVar[bool] = True
    unit: ClassVar[Unit]
    """What is hidden: a client with all its rows, or one example."""
    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    """sigma: the noise's standard deviation over the clip bound. 0: no noise, so no privacy."""
    target_epsilon: Annotated[float, Field(gt=0)] | None = None
    """In its place: what the whole run may cost; the noise is solved from it."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Of (epsilon, delta): below 1 / units, better 1 / (10 units)."""
    participation: Annotated[int, Field(ge=1)] | None = None
    """Rounds that any one client takes part in at most: it is not drawn any more then. None: all
    rounds count."""

    def conflicts(self, config: Any) -> Iterator[str]:
        yield from (f"modifiers: '{self.kind}' {trouble}" for trouble in self.troubles(config))

    def troubles(self, config: Any) -> Iterator[str]:
        """What it cannot work with, each as the rest of a sentence."""
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            yield "needs either noise_multiplier (for example 1.0) or target_epsilon"
        if config.codec.payload not in self.accepts:
            yield f"does not know what codec.kind = '{config.codec.kind}' sends; use 'dense'"
        if not config.topology.central:
            yield "has a server that adds up; set topology.kind = 'star'"
        if config.sharing.personal:
            yield (
                f"sharing.kind = '{config.sharing.kind}' tests what clients keep to themselves; "
                "set sharing.kind = 'everything'"
            )
        if config.guard.kind not in ("auto", "none"):
            yield (
                f"guard.kind = '{config.guard.kind}' asks for losses of held-out rows, which are "
                "releases that nobody accounts for; set guard.kind = 'none'"
            )
        if config.evaluate.clients:
            yield (
                "evaluate.clients tests on the clients' own rows, which are releases that nobody "
                "accounts for; set it to 0"
            )
        if config.start.kind not in ("auto", "none") and not config.start.private:
            yield (
                f"start.kind = '{config.start.kind}' asks for sums without noise; give it "
                "start.noise_multiplier, or set start.kind = 'none'"
            )
