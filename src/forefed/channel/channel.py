"""The slot ``channel``: what does the server see of a contribution?

A channel has two halves. The server's is a ``Session``, one for each exchange (a round's orders, or
a question): phase by phase it says what goes to whom and takes what comes back, and in the end it
opens what was heard. The client's is ``Channel.answer``, which is a function of what the client
kept from the phase before. The loop (federation/exchange.py) knows the phases by their names only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from forefed.channel.messages import Message
from forefed.core.errors import ProtocolError
from forefed.core.keys import Secret
from forefed.core.settings import Choice
from forefed.core.types import Params, Update, drawn_from

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]
Numbers = NDArray[np.int64]
TRAIN = "train"
"""The phase in which clients do their work; every channel has it."""


class TooFew(ProtocolError):
    """A client takes no part in so small a sum; made of numbers of clients only."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a client has to say when it is asked to work: its update, or its answer to a question.

    Attributes:
        encode: as it travels where the server sees it by itself.
        update: what is to be sent, of an order.
        shapes: of the update's tensors, the same for all clients that train the same.
        whole: a question's answer as whole numbers that can be summed, made with a secret of
            this client and this exchange, from which noise may be drawn.
    """

    encode: Callable[[], bytes]
    update: Update | None = None
    shapes: Callable[[], Shapes] | None = None
    whole: Callable[[Secret], Numbers] | None = None


@dataclass(frozen=True)
class Group:
    """Clients whose answers have the same form, and so can be added up."""

    clients: tuple[int, ...]
    shapes: Shapes


@dataclass(frozen=True)
class Sum:
    """What the server learns of a group.

    Attributes:
        asked: who was to be in it.
        clients: who is.
        tensors: the weighted mean of updates, or the sum of whole numbers (int64).
        about: an update's numbers: "examples", "clients", metrics.
    """

    asked: tuple[int, ...]
    clients: tuple[int, ...]
    tensors: Params
    about: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Work(Generic[T]):
    """What one exchange is about.

    Attributes:
        groups: who is asked.
        payload: what updates hold; "whole": answers to a question, whole numbers.
        read: an answer that came by itself; raises ProtocolError.
        of_sum: a sum of answers.
        own: the server's secret of this exchange.
    """

    groups: Sequence[Group]
    payload: Literal["delta", "projections", "whole"]
    read: Callable[[int, bytes], T]
    of_sum: Callable[[Sum], T]
    own: Secret | None = None

    @property
    def secret(self) -> Secret:
        return drawn_from(self.own)

    @property
    def clients(self) -> tuple[int, ...]:
        return tuple(c for group in self.groups for c in group.clients)


@dataclass(frozen=True)
class Opened(Generic[T]):
    """What came of an exchange.

    Attributes:
        found: answers, or sums of them (``summed``).
        heard: whose answers these are.
        reason: why there is no sum of some.
    """

    found: list[T]
    heard: tuple[int, ...]
    summed: bool = False
    reason: str = ""


class Session(ABC, Generic[T]):
    """The server's half of one exchange."""

    @abstractmethod
    def ask(self, phase: str) -> Mapping[int, Message | None]:
        """What goes to each client in this phase; beside its work in the phase "train" (None:
        nothing goes beside it). Who is left out takes no further part."""

    @abstractmethod
    def take(self, phase: str, client: int, answer: bytes) -> None:
        """What a client has answered.

        Raises:
            ProtocolError: it is of no use.
        """

    def take_sum(self, clients: Sequence[int], answer: bytes) -> None:
        """What these clients have answered in the phase "train", added up by an aggregator.

        Raises:
            ProtocolError: it is of no use, or this channel adds nothing up.
        """
        raise ProtocolError("answers that were added up, where each is read by itself")

    @abstractmethod
    def open(self) -> Opened[T]:
        """What the server learns, when all phases are over."""

    def why(self, client: int) -> str:
        """Why a client is asked for no work."""
        return "it takes no part"


class Single(Session[T]):
    """Every answer by itself. A channel that adds phases overrides ``ask`` and ``take``."""

    def __init__(self, work: Work[T]):
        self.work = work
        self.found: dict[int, T] = {}

    def ask(self, phase: str) -> Mapping[int, Message | None]:
        return dict.fromkeys(self.work.clients)

    def take(self, phase: str, client: int, answer: bytes) -> None:
        self.found[client] = self.work.read(client, answer)

    def open(self) -> Opened[T]:
        return Opened([*self.found.values()], tuple(sorted(self.found)))


class Channel(Choice):
    """Base of the channels."""

    phases: ClassVar[tuple[str, ...]] = (TRAIN,)
    """What passes between server and clients in an exchange, in order; one of them is "train"."""
    sums: ClassVar[bool] = False
    """The server sees sums over groups of clients, and no single contribution."""
    hides: ClassVar[bool] = False
    """Nobody but the client itself sees its contribution."""

    @property
    def least(self) -> int:
        """Clients whose contributions the server sees at least as one."""
        return 1

    def bears(self, colluding: int) -> bool:
        """Does a single contribution stay hidden, from whoever adds up as well, where so many
        clients tell the server all?"""
        return False

    def session(self, work: Work[T]) -> Session[T]:
        """The server's half of an exchange that begins."""
        return Single(work)

    def answer(
        self,
        asked: Message | None,
        upload: Upload | None,
        kept: bytes | None,
        client: int,
        secret: Callable[[], Secret],
    ) -> tuple[bytes, bytes | None]:
        """The client's half of one phase.

        Args:
            asked: what the server said (None: nothing beside the work).
            upload: what the client has to say, in the phase "train".
            kept: what it kept from the phase before; None in the first one.
            secret: the client's own of this exchange, where it is drawn from.

        Returns:
            Its answer, and what to keep.

        Raises:
            ProtocolError: a phase that this client will not or cannot take part in.
        """
        if upload is None or asked is not None:
            raise ProtocolError(f"the channel '{self.kind}' asks nothing beside a client's work")
        return upload.encode(), None

    def told(self) -> str:
        """What a model's card says of it; empty where the server saw every contribution."""
        return ""


class Plain(Channel):
    """Every client's contribution by itself."""

    kind: Literal["plain"] = "plain"
