"""One exchange between the server and clients: the phases of the channel, around their work.

Bytes are counted here, both ways, whatever travels: orders, questions, what the channel says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from forefed.channel import Channel
from forefed.channel.channel import TRAIN, Work
from forefed.core.errors import ProtocolError, UserError
from forefed.core.types import Lost, Reply, Transport

T = TypeVar("T")
Hook = Callable[[Reply | Lost], None]
Send = Callable[[Mapping[int, bytes], Callable[[], bool]], Iterator[Reply | Lost]]
"""Sends each of these clients its work, with what the channel says beside it (b"": nothing); the
second argument is true once there are all the answers that are wanted."""


@dataclass
class Came(Generic[T]):
    """What came of an exchange, and what it cost.

    Attributes:
        found: answers, or sums of them (``summed``).
        heard: whose answers these are.
        abandoned: answers in sums that were given up.
        reason: why they were.
        receiving_s: of the time that it took: the server's own work.
    """

    found: list[T] = field(default_factory=list)
    heard: tuple[int, ...] = ()
    summed: bool = False
    lost: list[Lost] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    abandoned: int = 0
    reason: str = ""
    receiving_s: float = 0.0


def exchange(
    channel: Channel,
    work: Work[T],
    transport: Transport,
    send: Send,
    round: int,
    deadline_s: float | None,
    wanted: int | None = None,
    on_outcome: Hook = lambda outcome: None,
) -> Came[T]:
    """All phases of one exchange.

    Args:
        send: the phase "train".
        wanted: answers after which the others are not waited for (None: all).
        on_outcome: told of one outcome for every client, as it comes.
    """
    came, clients = Came[T](), work.clients
    session = channel.session(work)
    wanted = len(clients) if wanted is None else wanted
    answered: list[int] = []
    """Clients that have done their work."""
    silent: dict[int, Lost] = {}
    """Those that were not heard any more after it; whether that is a loss, the channel knows."""
    before, after = _around(channel.phases)
    for phase in channel.phases:
        messages = session.ask(phase)
        encoded = {c: b"" if m is None else m.encode() for c, m in messages.items()}
        if phase == TRAIN:
            known = {lost.client for lost in came.lost}
            for client in clients:
                if client not in encoded and client not in known:
                    lost = Lost(round, client, "transport", session.why(client))
                    came.lost.append(lost)
                    on_outcome(lost)
            outcomes = send(encoded, lambda: len(answered) >= wanted) if encoded else iter(())
        else:
            outcomes = transport.tell(encoded, round, deadline_s) if encoded else iter(())
        for outcome in outcomes:
            came.bytes_down += outcome.bytes_down
            said: Reply | Lost = outcome
            if isinstance(outcome, Reply):
                came.bytes_up += outcome.bytes_up
                started = time.perf_counter()
                try:
                    if outcome.together:
                        session.take_sum(outcome.together, outcome.payload)
                    else:
                        session.take(phase, outcome.client, outcome.payload)
                    if phase == TRAIN:
                        answered.extend(outcome.clients)
                except ProtocolError as error:
                    said = Lost(round, outcome.client, "transport", str(error))
                came.receiving_s += time.perf_counter() - started
            for client in outcome.clients:
                mine = said if client == said.client else replace(said, client=client)
                if isinstance(mine, Lost) and phase in after:
                    silent[client] = mine
                elif isinstance(mine, Lost):
                    came.lost.append(mine)
                if phase == TRAIN or (phase in before and isinstance(mine, Lost)):
                    on_outcome(outcome if client == outcome.client else mine)
    started = time.perf_counter()
    opened = session.open()
    came.receiving_s += time.perf_counter() - started
    came.found, came.heard, came.summed = opened.found, opened.heard, opened.summed
    came.reason = opened.reason
    if opened.summed:
        came.abandoned = len(answered) - len(opened.heard)
    elif len(opened.heard) < len(answered):
        for client in sorted({*answered} - {*opened.heard}):
            nothing = Lost(round, client, "transport", "its answer was not opened")
            came.lost.append(silent.get(client, nothing))
    return came


def _around(phases: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The phases before the clients' work, and after it."""
    work = phases.index(TRAIN)
    return phases[:work], phases[work + 1 :]


def check_groups(channel: Channel, assigned: Sequence[tuple[str, ...]]) -> None:
    """Refuse an assignment by which some parameters have fewer holders than a sum needs.

    Args:
        assigned: what each client of a cohort trains.

    Raises:
        UserError: there is such a group.
    """
    sizes: dict[tuple[str, ...], int] = {}
    for names in assigned:
        sizes[names] = sizes.get(names, 0) + 1
    least = min(sizes.values(), default=channel.least)
    if least < channel.least:
        raise UserError(
            f"channel.kind = '{channel.kind}': by 'assign' a cohort of {len(assigned)} falls into "
            f"{len(sizes)} groups that train the same, the smallest of {least}, below the "
            f"{channel.least} of a sum; set assign.kind = 'everything', assign.replicas, or a "
            "larger cohort"
        )
