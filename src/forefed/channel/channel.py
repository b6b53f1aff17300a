"""The slot ``channel``: what does the server see of a contribution?"""

from __future__ import annotations

from typing import ClassVar, Literal

from forefed.core.errors import ProtocolError
from forefed.core.settings import Choice


class TooFew(ProtocolError):
    """A client takes no part in so small a sum; made of numbers of clients only."""


class Channel(Choice):
    """Base of the channels."""

    phases: ClassVar[tuple[str, ...]] = ("train",)
    """What passes between server and clients in a round, in order."""
    sums: ClassVar[bool] = False
    """The server sees sums over groups of clients, and no single contribution."""

    def told(self) -> str:
        """What a model's card says of it; empty where the server saw every contribution."""
        return ""


class Plain(Channel):
    """Every client's contribution by itself."""

    kind: Literal["plain"] = "plain"
