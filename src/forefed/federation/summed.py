"""A round whose answers the server sees as sums (``channel.kind = "secure_sum"``).

    keys, shares   before anything is computed: who takes part, and who holds shares of whom
    train          the orders (or the question), and the masked words
    unmask         shares of those that were heard, and of those that were not

Clients that were asked to train the same parameters are one group, and one sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from forefed.channel import SecureSum
from forefed.channel.messages import Message, decode_masked, heard
from forefed.channel.words import Words
from forefed.core.errors import ProtocolError, UserError
from forefed.core.keys import Secret
from forefed.core.types import Lost, Order, Reply, Transport, Update
from forefed.local.summed import Shapes, empty, of_words

if TYPE_CHECKING:
    from forefed.channel.server import Group
    from forefed.federation.star import Star

Hook = Callable[[Reply | Lost], None]


@dataclass
class Summation:
    """Sums of several groups at once, phase by phase.

    ``secret`` decides who is whose neighbour and names the sums; it is the server's, and of this
    round. ``lost`` holds one outcome for every client that dropped out before it was asked to work.
    """

    channel: SecureSum
    transport: Transport
    round: int
    deadline_s: float | None
    secret: Secret
    groups: list[Group] = field(default_factory=list)
    clients: list[tuple[int, ...]] = field(default_factory=list)
    abandoned: dict[int, str] = field(default_factory=dict)
    """Why, by number of the group."""
    lost: list[Lost] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, clients: Sequence[int], zero: Words) -> None:
        """One more group."""
        from forefed.channel.server import Group

        secret = self.secret.fold("group", len(self.groups))
        self.groups.append(
            Group(
                secret.fold("session").bytes[:8],
                secret,
                zero,
                self.channel.min_group,
                self.channel.degree(),
                self.channel.colluding,
                self.channel.lost,
            )
        )
        self.clients.append(tuple(clients))

    def prepare(self) -> dict[int, bytes]:
        """Phases "keys" and "shares": what the channel says beside every client's work. Whoever is
        missing is lost."""
        from forefed.channel.server import Abandoned

        invited = {
            c: Message("keys", group.session).encode()
            for group, clients in zip(self.groups, self.clients, strict=True)
            for c in clients
        }
        keys = self._told("keys", invited)
        asked: dict[int, bytes] = {}
        for i, group in enumerate(self.groups):
            try:
                for c, parts in group.take_keys(self._of(i, "keys", keys)).items():
                    message = Message.of("shares", group.session, len(group.keys), parts)
                    asked[c] = message.encode()
            except Abandoned as error:
                self._abandon(i, error)
        sealed = self._told("shares", asked)
        work: dict[int, bytes] = {}
        for i, group in enumerate(self.groups):
            if i in self.abandoned:
                continue
            try:
                for c, parts in group.take_shares(self._of(i, "shares", sealed)).items():
                    message = Message.of("train", group.session, len(group.sharing), parts)
                    work[c] = message.encode()
            except Abandoned as error:
                self._abandon(i, error)
        known = {x.client for x in self.lost}
        for i, clients in enumerate(self.clients):
            detail = self.abandoned.get(i, "its answer did not fit the sum")
            self.lost += [
                Lost(self.round, c, "transport", detail)
                for c in clients
                if c not in work and c not in known
            ]
        return work

    def take(self, client: int, payload: bytes) -> None:
        """A client's masked words.

        Raises:
            ProtocolError: damaged, of another sum, or of a client that takes no part.
        """
        for group in self.groups:
            if client in group.sharing:
                return group.take_words(client, decode_masked(payload, group.session))
        raise ProtocolError(f"client {client} takes no part in this sum")

    def finish(self) -> dict[int, Words]:
        """Phase "unmask": the sums by number of the group; those that were abandoned are absent."""
        from forefed.channel.server import Abandoned

        asked: dict[int, bytes] = {}
        for i, group in enumerate(self.groups):
            if i in self.abandoned:
                continue
            try:
                for c, alive in group.survivors().items():
                    there = len(group.heard)
                    asked[c] = Message("unmask", group.session, there, alive).encode()
            except Abandoned as error:
                self._abandon(i, error)
        told = self._told("unmask", asked, count=False)
        opened: dict[int, Words] = {}
        for i, group in enumerate(self.groups):
            if i not in self.abandoned:
                try:
                    opened[i] = group.open(self._of(i, "unmask", told))
                except ProtocolError as error:
                    self._abandon(i, error)
        return opened

    def in_sum(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """The clients whose words are in these sums."""
        return tuple(sorted(c for i in numbers for c in self.groups[i].heard))

    def _abandon(self, number: int, why: ProtocolError) -> None:
        self.abandoned[number] = str(why)

    def _told(
        self, phase: str, messages: Mapping[int, bytes], count: bool = True
    ) -> dict[int, bytes]:
        """The answers to one phase."""
        answers: dict[int, bytes] = {}
        if not messages:
            return answers
        for outcome in self.transport.tell(messages, self.round, self.deadline_s):
            self.bytes_down += outcome.bytes_down
            if isinstance(outcome, Reply):
                self.bytes_up += outcome.bytes_up
                answers[outcome.client] = outcome.payload
            elif count:
                self.lost.append(outcome)
        return answers

    def _of(self, number: int, phase: str, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        own = {c: answers[c] for c in self.clients[number] if c in answers}
        return dict(heard(own, phase, self.groups[number].session))


@dataclass(frozen=True)
class Came:
    """What came of a round's orders, and what it cost."""

    updates: list[Update]
    lost: list[Lost]
    bytes_up: int
    bytes_down: int
    clients: tuple[int, ...] | None = None
    """Whose contributions are in the updates, where each of these is a sum."""
    abandoned: int = 0
    """Answers in sums that were abandoned."""
    receiving_s: float = 0.0
    """Of the time that it took: the server's own work."""

    @property
    def counted(self) -> Mapping[str, float]:
        """Of clients in sums: how many were scaled down to the clip, or had more examples than
        count."""
        if self.clients is None:
            return {}
        return {n: sum(u.metrics[n] for u in self.updates) for n in ("clipped", "capped")}


def hear_sums(
    star: Star,
    channel: SecureSum,
    orders: Mapping[int, Order],
    shapes: Callable[[Order], Shapes],
    on_outcome: Hook | None,
) -> Came:
    """A round's orders and their answers.

    Args:
        shapes: of an answer to an order (``local.summed.shapes_of``).
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for client, order in orders.items():
        alike.setdefault(order.assigned, []).append(client)
    number = next((o.round for o in orders.values()), 0)
    sums = Summation(
        channel, star.transport, number, star.deadline_s, star.server.round_secret(number)
    )
    forms = [shapes(orders[clients[0]]) for clients in alike.values()]
    for clients, form in zip(alike.values(), forms, strict=True):
        sums.add(clients, empty(form, channel))
    work = sums.prepare()
    lost = list(sums.lost)
    if on_outcome:
        for early in lost:
            on_outcome(early)
    told = [replace(orders[c], channel=message) for c, message in work.items()]
    answers = 0
    for outcome in star.transport.exchange(told, star.deadline_s) if told else ():
        sums.bytes_down += outcome.bytes_down
        if isinstance(outcome, Reply):
            sums.bytes_up += outcome.bytes_up
            try:
                sums.take(outcome.client, outcome.payload)
                answers += 1
            except ProtocolError as error:
                lost.append(Lost(number, outcome.client, "transport", str(error)))
        else:
            lost.append(outcome)
        if on_outcome:
            on_outcome(outcome)
    opened = sums.finish()
    updates = []
    for i, total in opened.items():
        # under the smallest number that was asked to, as an update has one
        first, size = min(sums.clients[i]), len(sums.groups[i].sharing)
        slopes = star.server.averages_slopes
        updates.append(of_words(total, forms[i], channel, size, first, slopes))
    there = sums.in_sum(opened)
    lost_answers = answers - len(there)
    return Came(updates, lost, sums.bytes_up, sums.bytes_down, there, lost_answers)


def check_groups(channel: SecureSum, assigned: Sequence[tuple[str, ...]]) -> None:
    """Refuse an assignment by which some parameters have fewer holders than a sum needs.

    Args:
        assigned: what each client of a cohort trains.

    Raises:
        UserError: there is such a group.
    """
    sizes: dict[tuple[str, ...], int] = {}
    for names in assigned:
        sizes[names] = sizes.get(names, 0) + 1
    least = min(sizes.values(), default=channel.min_group)
    if least < channel.min_group:
        raise UserError(
            f"channel.kind = 'secure_sum': by 'assign' a cohort of {len(assigned)} falls into "
            f"{len(sizes)} groups that train the same, the smallest of {least}, below "
            f"channel.min_group = {channel.min_group}; set assign.kind = 'everything', assign."
            "copies, or a larger cohort"
        )
