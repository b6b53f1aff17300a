"""Base of the channels by which the server sees sums over groups of clients.

Tensors (or slopes along shared directions), numbers of examples and metrics are whole numbers
(fixed_point.py, summands.py), so a sum is the same whatever the order, and whatever the tree, in
which it was added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.channel.channel import Channel
from forefed.channel.fixed_point import FixedPoint, WordBits

LEAST_DIGITS = 8
"""Binary digits that a contribution of one example keeps at least."""


class Summing(Channel):
    """Contributions as whole numbers, added up before the server reads them."""

    clip: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Largest absolute value of a client's numbers; one with a larger is scaled down as a whole,
    before it is weighted. "auto": in a secure sum 1 for tensors and 64 for slopes; in partial sums
    64 and 1024."""
    max_examples: Annotated[int, Field(ge=1)] = 1024
    """Largest weight of a client: of more training examples so many count."""
    bits: WordBits = 32
    """Of a word that travels, 32 or 64."""
    fraction: Annotated[int, Field(ge=0, le=60)] | Literal["auto"] = "auto"
    """Binary digits behind the point; "auto": as many as fit clients x max_examples x clip."""

    sums: ClassVar[bool] = True
    clips: ClassVar[Mapping[str, float]] = {"delta": 1.0, "projections": 64.0}
    """``clip = "auto"`` by what travels: changes of parameters, slopes."""
    takes: ClassVar[str] = "hides"
    """What becomes of single contributions, as a word."""

    def point(self, payload: str, clients: int) -> FixedPoint:
        """How numbers stand in words, in a sum of so many clients."""
        clip = self.clips[payload] if self.clip == "auto" else self.clip
        if self.fraction == "auto":
            return FixedPoint.fitting(clients, clip, self.max_examples, self.bits)
        return FixedPoint(clip, self.max_examples, self.fraction, self.bits)

    def conflicts(self, config: Any) -> Iterator[str]:
        here = f"channel.kind = '{self.kind}'"
        for slot in ("aggregator", "trigger"):
            if getattr(config, slot).individual:
                yield (
                    f"{slot}.kind = '{getattr(config, slot).kind}' reads single contributions, "
                    f"which {here} {self.takes}; choose another, or channel.kind = 'plain'"
                )
        if config.codec.kind not in ("dense", "scalars"):
            yield (
                f"codec.kind = '{config.codec.kind}': {here} sends words of its own "
                "(channel.bits); set codec.kind = 'dense'"
            )
        if config.codec.sends_slopes:
            if not config.directions.shared:
                yield (
                    f"{here}: slopes along each client's own directions cannot be summed; set "
                    "directions.shared = true, or codec.kind = 'dense'"
                )
            if config.client.max_steps is None:
                yield (
                    f"{here}: all clients' slopes must have one length; set client.max_steps, or "
                    "codec.kind = 'dense'"
                )
        if config.download.by_sums:
            yield (
                "download.kind = 'pool' replays every client's slopes by themselves, which "
                f"{here} {self.takes}; set download.kind = 'dense' or 'scalars'"
            )
        if not config.topology.central:
            yield f"topology.kind = '{config.topology.kind}' has no server, and {here} needs one"
        if config.oversampling:
            yield (
                f"oversampling: under {here} an answer that is not wanted any more counts as a "
                "client that dropped out; set oversampling = 0"
            )
        if len(config.memory) > 1:
            yield (
                "memory: groups with engines of unequal noise are weighed one by one, which "
                f"{here} {self.takes}; give one budget"
            )
        yield from self._single(config, here)
        yield from self._too_coarse(config)

    def _single(self, config: Any, here: str) -> Iterator[str]:
        """Of modifiers of others: none of ours is individual."""
        for modifier in config.modifiers:
            if modifier.individual:
                yield (
                    f"modifiers: '{modifier.kind}' reads single contributions at the server, which "
                    f"{here} {self.takes}; leave it out, or set channel.kind = 'plain'"
                )

    def _too_coarse(self, config: Any) -> Iterator[str]:
        point = self.point(config.codec.payload, config.cohort)
        reach = f"{config.cohort} clients x max_examples = {self.max_examples} x clip"
        if not point.fits(config.cohort):
            yield (
                f"channel.fraction = {self.fraction}: {reach} = {point.clip:g} x 2^{self.fraction} "
                f"does not fit words of {self.bits} bits; lower one of them, or set channel.bits "
                "= 64"
            )
        elif point.clip * 2.0**point.fraction < 2**LEAST_DIGITS:
            yield (
                f"channel.bits = {self.bits}: {reach} = {point.clip:g} leaves fewer than "
                f"{LEAST_DIGITS} binary digits for a client of one example; lower one of them, or "
                "set channel.bits = 64"
            )
