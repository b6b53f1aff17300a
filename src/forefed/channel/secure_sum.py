"""Secure aggregation: sums over groups of clients, and nothing of a single one.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning"
(CCS 2017); in groups of more than 32 with the neighbours of Bell et al. (CCS 2020).

Tensors (or slopes along shared directions), numbers of examples and metrics all stand in the sum.
Who is safe from whom, and what it costs: docs/secure-sum.md.

Departures: numbers are scaled down to the clip before they are weighted, and the bits behind the
point follow from what all clients together can reach; no signatures, so the server is believed to
hand on keys and survivors as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.channel.channel import Channel, Session, T, Upload, Work
from forefed.channel.fixed_point import FixedPoint, WordBits
from forefed.channel.graph import SMALL, threshold_of
from forefed.channel.messages import Message
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret

CLIPS = {"delta": 1.0, "projections": 64.0}
"""``clip = "auto"`` by what travels: changes of parameters, slopes."""
LEAST_DIGITS = 8
"""Binary digits that a contribution of one example keeps at least."""


class SecureSum(Channel):
    """Sums over groups of clients, masked by the clients; no single contribution."""

    kind: Literal["secure_sum"] = "secure_sum"
    min_group: Annotated[int, Field(ge=3)] = 5
    """Fewer clients than this are not summed: the round changes nothing."""
    neighbours: Annotated[int, Field(ge=4, multiple_of=2)] | Literal["all", "auto"] = "auto"
    """Other clients with whom each shares masks; "auto": all in groups of up to 32, beyond as many
    as ``colluding`` and ``lost`` ask for."""
    colluding: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the clients that may tell the server all they know (for neighbours = "auto")."""
    lost: Annotated[float, Field(ge=0, lt=0.3)] = 0.05
    """Share of the clients that drop out of a round (for neighbours = "auto")."""
    clip: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Largest absolute value of a client's numbers; one with a larger is scaled down as a whole,
    before it is weighted. "auto": 1 for tensors, 64 for slopes."""
    max_examples: Annotated[int, Field(ge=1)] = 1024
    """Largest weight of a client: of more training examples so many count."""
    bits: WordBits = 32
    """Of a word that travels, 32 or 64."""
    fraction: Annotated[int, Field(ge=0, le=60)] | Literal["auto"] = "auto"
    """Binary digits behind the point; "auto": as many as fit clients x max_examples x clip."""

    source: ClassVar[str] = "Bonawitz et al., CCS 2017; Bell et al., CCS 2020"
    phases: ClassVar[tuple[str, ...]] = ("keys", "shares", "train", "unmask")
    sums: ClassVar[bool] = True

    @property
    def least(self) -> int:
        return self.min_group

    # the library that both halves need is an extra, so they are imported where they begin
    def session(self, work: Work[T]) -> Session[T]:
        from forefed.channel.secure_sum_exchange import MaskedSums

        return MaskedSums(self, work)

    def answer(
        self,
        asked: Message | None,
        upload: Upload | None,
        kept: bytes | None,
        client: int,
        secret: Callable[[], Secret],
    ) -> tuple[bytes, bytes | None]:
        from forefed.channel.secure_sum_exchange import answered

        if asked is None:
            raise ProtocolError("work without its sum, where contributions are hidden")
        return answered(self, asked, upload, kept, client, secret)

    def told(self) -> str:
        return (
            f"The server saw sums over groups of {self.min_group} clients or more (secure "
            "aggregation), and no single contribution."
        )

    def degree(self) -> int | None:
        """Neighbours of each client as a number; None: by the size of the group."""
        if self.neighbours == "all":
            return 2**31
        return None if self.neighbours == "auto" else self.neighbours

    def bears(self, colluding: int) -> bool:
        holders = min(self.min_group, (self.degree() or SMALL) + 1)
        few = colluding < threshold_of(holders)
        # in a large group each has some neighbours only: as many of them as were reckoned with
        large = max(self.min_group, SMALL + 1)
        return few and (self.neighbours != "auto" or colluding <= self.colluding * large)

    def point(self, payload: str, clients: int) -> FixedPoint:
        """How numbers stand in words, in a sum of so many clients."""
        clip = CLIPS[payload] if self.clip == "auto" else self.clip
        if self.fraction == "auto":
            return FixedPoint.fitting(clients, clip, self.max_examples, self.bits)
        return FixedPoint(clip, self.max_examples, self.fraction, self.bits)

    def conflicts(self, config: Any) -> Iterator[str]:
        here = "channel.kind = 'secure_sum'"
        if config.cohort < self.min_group:
            yield (
                f"cohort = {config.cohort} is below channel.min_group = {self.min_group}, so every "
                "round would be abandoned; raise the cohort"
            )
        degree = self.degree()
        if degree is not None and degree + 1 < self.min_group:
            yield (
                f"channel.neighbours = {self.neighbours} and channel.min_group = {self.min_group}: "
                "a client counts those whose shares it holds, and there are too few; raise "
                "neighbours, or set channel.neighbours = 'auto'"
            )
        for slot in ("aggregator", "trigger"):
            if getattr(config, slot).individual:
                yield (
                    f"{slot}.kind = '{getattr(config, slot).kind}' reads single contributions, "
                    f"which {here} hides; choose another, or channel.kind = 'plain'"
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
                f"{here} hides; set download.kind = 'dense' or 'scalars'"
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
                f"{here} hides; give one budget"
            )
        yield from self._outside(config)
        yield from self._too_coarse(config)

    def _outside(self, config: Any) -> Iterator[str]:
        """What depends on the machine, and on modifiers of others (none of ours is individual)."""
        here = "channel.kind = 'secure_sum'"
        if find_spec("cryptography") is None:
            yield f"{here} needs the library 'cryptography': pip install 'forefed[secure]'"
        for modifier in config.modifiers:
            if modifier.individual:
                yield (
                    f"modifiers: '{modifier.kind}' reads single contributions at the server, which "
                    f"{here} hides; leave it out, or set channel.kind = 'plain'"
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
