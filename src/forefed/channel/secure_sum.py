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

from forefed.channel.channel import Session, T, Upload, Work
from forefed.channel.graph import SMALL, threshold_of
from forefed.channel.messages import Message
from forefed.channel.summing import Summing
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret


class SecureSum(Summing):
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
    source: ClassVar[str] = "Bonawitz et al., CCS 2017; Bell et al., CCS 2020"
    phases: ClassVar[tuple[str, ...]] = ("keys", "shares", "train", "unmask")
    hides: ClassVar[bool] = True

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

    def conflicts(self, config: Any) -> Iterator[str]:
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
        yield from super().conflicts(config)
        yield from self._of_this_machine()

    def _of_this_machine(self) -> Iterator[str]:
        if find_spec("cryptography") is None:
            here = "channel.kind = 'secure_sum'"
            yield f"{here} needs the library 'cryptography': pip install 'forefed[secure]'"
